-- Reports that a replica is there, with so many connections.
--
-- KEYS 1 replicas   2 connections   ARGV 1 replica   2 connections   3 how long that holds, in ms
local now = redis.call('TIME')
local ms = math.floor(now[1] * 1000 + now[2] / 1000)
-- Removes what killed replicas have left.
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ms)) do
  redis.call('ZREM', KEYS[1], gone)
  redis.call('HDEL', KEYS[2], gone)
end
redis.call('ZADD', KEYS[1], string.format('%.0f', ms + tonumber(ARGV[3])), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
