-- Renews the leases of one partition that are there.
--
-- KEYS 1 deadlines   ARGV 1 ms   2… members
-- Answers the places (from 1) of the members that are not there.
local now = redis.call('TIME')
local ends = string.format('%.0f', math.floor(now[1] * 1000 + now[2] / 1000) + tonumber(ARGV[1]))
local missing = {}
for i = 2, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], 'XX', ends, ARGV[i])
  else
    missing[#missing + 1] = i - 1
  end
end
return missing
