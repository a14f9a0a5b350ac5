-- The approvals that wait for an answer, and the newest event at that moment.
--
-- KEYS 1 events   2 approvals   Answers {head id or '', its time, request id and question in turn…}.
local head = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', '1')[1]
local answer = {'', ''}
if head then answer = {head[1], string.sub(head[2][2], 1, 16)} end
for _, text in ipairs(redis.call('HGETALL', KEYS[2])) do answer[#answer + 1] = text end
return answer
