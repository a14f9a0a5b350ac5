-- A state, the clock, and which agents' leases on its channel last.
--
-- KEYS 1 state   2 agents   3 deadlines   ARGV 1 what stands before an agent among the deadlines
-- Answers {ms, state or false, agents…}.
local now = redis.call('TIME')
local ms = now[1] .. string.sub(string.sub('00000' .. now[2], -6), 1, 3)
local answer = {ms, redis.call('GET', KEYS[1])}
for _, agent in ipairs(redis.call('HKEYS', KEYS[2])) do
  local ends = redis.call('ZSCORE', KEYS[3], ARGV[1] .. agent)
  if ends and tonumber(ends) > tonumber(ms) then answer[#answer + 1] = agent end
end
return answer
