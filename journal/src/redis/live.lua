-- The agents whose leases on a channel last. Of more than so many only the number, so that it costs the same
-- however many there are.
--
-- KEYS 1 agents   2 deadlines   ARGV 1 what stands before an agent among the deadlines   2 so many
-- Answers {ms, number, agents…}.
local now = redis.call('TIME')
local ms = now[1] .. string.sub(string.sub('00000' .. now[2], -6), 1, 3)
local count = redis.call('HLEN', KEYS[1])
if count > tonumber(ARGV[2]) then return {ms, tostring(count)} end
local answer = {ms, '0'}
for _, agent in ipairs(redis.call('HKEYS', KEYS[1])) do
  local ends = redis.call('ZSCORE', KEYS[2], ARGV[1] .. agent)
  if ends and tonumber(ends) > tonumber(ms) then answer[#answer + 1] = agent end
end
answer[2] = tostring(#answer - 2)
return answer
