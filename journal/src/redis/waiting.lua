-- A page of what waits on a channel, oldest first, and the newest command at that moment.
--
-- KEYS 1 commands   2 list   3 entries (see change.lua)   ARGV 1 after which place in the list   2 most bytes
-- Answers {head id or '', its time, the last place or '' where nothing follows, id and entry in turn…}.
local call, sub = redis.call, string.sub
local head = call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', '1')[1]
local answer = {'', '', ''}
if head then answer = {head[1], sub(head[2][2], 1, 16), ''} end
local after, bytes = ARGV[1], tonumber(ARGV[2])
while bytes > 0 do
  local members = call('ZRANGEBYSCORE', KEYS[2], '(' .. after, '+inf', 'WITHSCORES', 'LIMIT', '0', '64')
  if #members == 0 then return answer end
  for i = 1, #members, 2 do
    after = members[i + 1]
    local waits = call('HGET', KEYS[3], members[i]) or ''
    local length, id, rest = string.match(waits, '^%a %d+ (%d+) (%S+) (.*)$')
    if length then
      local entry = sub(rest, tonumber(length) + 2)
      answer[#answer + 1], answer[#answer + 2] = id, entry
      bytes = bytes - #entry
    end
    if bytes <= 0 then break end
  end
end
answer[3] = after
return answer
