-- The channels on which approvals of one id stand; first notes another one, where it is given and there is room.
--
-- KEYS 1 places, the channels by the time until which each is known
-- ARGV 1 how many at most   2 the channel   3 for how many ms it is known; 2 and 3 may be left out
-- Answers the channels that stood there before.
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local time = string.format('%.0f', ms)
local places = redis.call('ZRANGEBYSCORE', KEYS[1], time, '+inf', 'LIMIT', '0', ARGV[1])
if not ARGV[2] then return places end
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. time)) do
  redis.call('ZREM', KEYS[1], gone)
end
if #places < tonumber(ARGV[1]) or redis.call('ZSCORE', KEYS[1], ARGV[2]) then
  redis.call('ZADD', KEYS[1], 'GT', string.format('%.0f', ms + tonumber(ARGV[3])), ARGV[2])
end
local last = redis.call('ZREVRANGE', KEYS[1], '0', '0', 'WITHSCORES')[2]
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', tonumber(last) - ms))
return places
