-- One atomic step of something that has a state: compare, replace, and tell everybody.
--
-- KEYS  1 state   2 deadlines   3 events   4 commands   5 retention settings   6 the list that must have room
--       7 the holder's producer record   8… keys that the effects name by their number
-- ARGV  1 expected state, '' for none   2 new state   3 its lifetime in ms, '' for ever
--       4 condition: '' | 'due <member>' | 'notdue <member>' | 'room <most>'
--       5 'holder': refuse a holder that is fenced
--       6 events' notification   7 commands' notification   8 events' retention field   9 its default
--       10 commands' retention field   11 its default
--       12… effects:  event <row> | command <row> | put <key> <member> <value> | remove <key> <member> |
--                     due <member> <ms from now, '' never> | fence <key> <lifetime ms> |
--                     ring <address> <text>
--
-- Answers {'done', time in µs, ids of what was appended…} | {'conflict', state or false} | {'unmet'} |
-- {'fenced'}. A state that already is the new one was put there by an earlier attempt of this step.
local call, sub = redis.call, string.sub
local found = call('GET', KEYS[1])
if found == ARGV[2] and found ~= ARGV[1] then return {'done', '0'} end
if (found or '') ~= ARGV[1] then return {'conflict', found} end
-- What append.lua takes for a record of an incarnation that no producer can exceed.
local FENCE = string.rep('9', 16) .. string.rep('0', 16)
if ARGV[5] ~= '' and call('GET', KEYS[7]) == FENCE then return {'fenced'} end

local now = call('TIME')
local time = now[1] .. sub('00000' .. now[2], -6)
local ms = tonumber(sub(time, 1, 13))

local condition, rest = string.match(ARGV[4], '^(%a+) (.*)$')
if condition == 'room' then
  if call('HLEN', KEYS[6]) >= tonumber(rest) then return {'unmet'} end
elseif condition then
  local due = call('ZSCORE', KEYS[2], rest)
  local is_due = due and tonumber(due) <= ms or false
  if is_due ~= (condition == 'due') then return {'unmet'} end
end

local answer = {'done', time}
local function append(stream, notification, field, default, row)
  local entry = time .. ' ' .. row
  local last = call('XREVRANGE', stream, '+', '-', 'COUNT', '1')[1]
  local id
  if last then
    id = call('XADD', stream, string.match(last[1], '^%d+') .. '-*', 'e', entry)
  else
    call('DEL', stream)
    id = call('XADD', stream, sub(time, 1, 13) .. '-1', 'e', entry)
  end
  local setting = call('HGET', KEYS[5], field) or default
  local entries, age = string.match(setting, '^(%d+) %d+ (%d+)$')
  -- As in append.lua, whose writers look at the age every 100 s.
  call('PEXPIRE', stream, string.format('%.0f', tonumber(age) + 100000))
  call('XTRIM', stream, 'MAXLEN', entries)
  call('PUBLISH', notification, id .. ' :' .. entry)
  answer[#answer + 1] = id
end

if ARGV[3] == '' then
  call('SET', KEYS[1], ARGV[2])
else
  call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
local at = 12
local function take(count)
  at = at + count
  return unpack(ARGV, at - count, at - 1)
end
while ARGV[at] do
  local effect = take(1)
  if effect == 'event' then
    append(KEYS[3], ARGV[6], ARGV[8], ARGV[9], (take(1)))
  elseif effect == 'command' then
    append(KEYS[4], ARGV[7], ARGV[10], ARGV[11], (take(1)))
  elseif effect == 'put' then
    local key, member, value = take(3)
    call('HSET', KEYS[tonumber(key)], member, value)
  elseif effect == 'remove' then
    local key, member = take(2)
    call('HDEL', KEYS[tonumber(key)], member)
  elseif effect == 'due' then
    local member, after = take(2)
    if after == '' then
      call('ZREM', KEYS[2], member)
    else
      call('ZADD', KEYS[2], string.format('%.0f', ms + tonumber(after)), member)
    end
  elseif effect == 'fence' then
    local key, lifetime = take(2)
    call('SET', KEYS[tonumber(key)], FENCE, 'PX', lifetime)
  else
    local address, text = take(2)
    call('PUBLISH', address, text)
  end
end
return answer
