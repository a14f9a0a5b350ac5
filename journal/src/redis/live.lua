-- The agents whose leases on a channel last. Of more than so many only the number, so that it costs the same
-- however many there are.
--
-- KEYS 1 agents   2 deadlines   3 that an agent has been seen   ARGV 1 what stands before an agent among the deadlines   2 so many
-- Answers {ms, number, '1' where an agent has been seen, agents…}.
local now = redis.call('TIME')
local ms = now[1] .. string.sub(string.sub('00000' .. now[2], -6), 1, 3)
local count = redis.call('HLEN', KEYS[1])
local seen = redis.call('GET', KEYS[3]) and '1' or '0'
if count > tonumber(ARGV[2]) then return {ms, tostring(count), seen} end
local answer = {ms, '0', seen}
for _, agent in ipairs(redis.call('HKEYS', KEYS[1])) do
  local ends = redis.call('ZSCORE', KEYS[2], ARGV[1] .. agent)
  if ends and tonumber(ends) > tonumber(ms) then answer[#answer + 1] = agent end
end
answer[2] = tostring(#answer - 3)
return answer
