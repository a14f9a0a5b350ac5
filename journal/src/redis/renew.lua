-- Renews the leases of one partition that are there and still their holders'.
--
-- KEYS 1 deadlines   2… the holders' producer records   ARGV 1 ms   2… members
-- Answers the places (from 1) of the members that are not there, or whose holder is fenced.
-- As in change.lua.
local FENCE = string.rep('9', 16) .. string.rep('0', 16)
local now = redis.call('TIME')
local ends = string.format('%.0f', math.floor(now[1] * 1000 + now[2] / 1000) + tonumber(ARGV[1]))
local missing = {}
for i = 2, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) and redis.call('GET', KEYS[i]) ~= FENCE then
    redis.call('ZADD', KEYS[1], 'XX', ends, ARGV[i])
  else
    missing[#missing + 1] = i - 1
  end
end
return missing
