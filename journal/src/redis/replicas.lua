-- The replicas that are there, each followed by its connections.
--
-- KEYS 1 replicas   2 connections
local now = redis.call('TIME')
local ms = math.floor(now[1] * 1000 + now[2] / 1000)
local answer = {}
for _, replica in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. ms, '+inf')) do
  answer[#answer + 1] = replica
  answer[#answer + 1] = redis.call('HGET', KEYS[2], replica) or '0'
end
return answer
