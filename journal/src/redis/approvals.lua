-- The approvals that wait for an answer, and the newest event at that moment.
--
-- KEYS 1 events   2 approvals   Answers {ms, head id or '', its time, request id and question in turn…}.
local now = redis.call('TIME')
local ms = now[1] .. string.sub(string.sub('00000' .. now[2], -6), 1, 3)
local head = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', '1')[1]
local answer = {ms, '', ''}
if head then answer = {ms, head[1], string.sub(head[2][2], 1, 16)} end
for _, text in ipairs(redis.call('HGETALL', KEYS[2])) do answer[#answer + 1] = text end
return answer
