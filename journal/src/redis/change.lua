-- One atomic step of a record: compare, replace, and tell everybody. It first checks everything, and reads
-- each key that it will write, so that a key of a wrong type is found before anything has changed.
--
-- KEYS  1 state   2… those that the parts below name by their numbers
-- ARGV  1 expected state, '' for none   2 new state, '' for none   3 its lifetime in ms, '' for ever
--       4… parts:
--   conditions  fenced <producer's record> | is-due <deadlines> <member> | room <index> <most>
--   effects     append <stream> <notification> <settings> <retention field> <its default> <row> |
--               put <index> <member> <value> | remove <index> <member> |
--               due <deadlines> <member> <ms from now> | never <deadlines> <member> |
--               fence <producer's record> <lifetime ms> | notify <address> <text>
--
-- Answers {'done'} | {'conflict', ms, state or false} | {'unmet'} | {'fenced'}. A state that already is the
-- new one was put there by an earlier attempt of this step.
local call, sub = redis.call, string.sub
local now = call('TIME')
local time = now[1] .. sub('00000' .. now[2], -6)
local ms = tonumber(sub(time, 1, 13))

local found = call('GET', KEYS[1]) or ''
if found ~= ARGV[1] then
  if found == ARGV[2] then return {'done'} end
  return {'conflict', sub(time, 1, 13), found ~= '' and found}
end

-- What append.lua takes for a record of an incarnation that no producer can exceed.
local FENCE = string.rep('9', 16) .. string.rep('0', 16)
-- The newest id of each stream.
local last = {}
-- How much a stream keeps: what is set, where that can be read.
local kept = {}

local function key(number) return KEYS[tonumber(number)] end

-- A retention setting; nothing where it is malformed, or a number is beyond what Redis takes.
local function keep(setting)
  local entries, bytes, age = string.match(setting or '', '^(%d+) (%d+) (%d+)$')
  if entries and math.max(#entries, #bytes, #age) <= 15 then
    return {entries = entries, bytes = tonumber(bytes), age = tonumber(age)}
  end
end

-- Each part: how many arguments it has, its check, which answers why the step is refused, and what it does.
local parts = {
  ['fenced'] = {1, function(record)
    if call('GET', key(record)) == FENCE then return 'fenced' end
  end},
  ['is-due'] = {2, function(deadlines, member)
    local due = call('ZSCORE', key(deadlines), member)
    if not due or tonumber(due) > ms then return 'unmet' end
  end},
  ['room'] = {2, function(index, most)
    if call('HLEN', key(index)) >= tonumber(most) then return 'unmet' end
  end},
  ['append'] = {6, function(stream, _, settings, field, default)
    local head = call('XREVRANGE', key(stream), '+', '-', 'COUNT', '1')[1]
    last[stream] = head and head[1] or nil
    kept[stream] = keep(call('HGET', key(settings), field)) or keep(default)
  end, function(stream, notification, _, _, _, row)
    local entry, name = time .. ' ' .. row, key(stream)
    local id
    if last[stream] then
      id = call('XADD', name, string.match(last[stream], '^%d+') .. '-*', 'e', entry)
    else
      call('DEL', name)
      id = call('XADD', name, sub(time, 1, 13) .. '-1', 'e', entry)
    end
    last[stream] = id
    -- As in append.lua, whose writers look at the age every 100 s.
    call('PEXPIRE', name, string.format('%.0f', kept[stream].age + 100000))
    call('XTRIM', name, 'MAXLEN', kept[stream].entries)
    call('PUBLISH', notification, id .. ' :' .. entry)
  end},
  ['put'] = {3, function(index) call('HLEN', key(index)) end,
    function(index, member, value) call('HSET', key(index), member, value) end},
  ['remove'] = {2, function(index) call('HLEN', key(index)) end,
    function(index, member) call('HDEL', key(index), member) end},
  ['due'] = {3, function(deadlines) call('ZCARD', key(deadlines)) end,
    function(deadlines, member, after)
      call('ZADD', key(deadlines), string.format('%.0f', ms + tonumber(after)), member)
    end},
  ['never'] = {2, function(deadlines) call('ZCARD', key(deadlines)) end,
    function(deadlines, member) call('ZREM', key(deadlines), member) end},
  ['fence'] = {2, nil,
    function(record, lifetime) call('SET', key(record), FENCE, 'PX', lifetime) end},
  ['notify'] = {2, nil, function(address, text) call('PUBLISH', address, text) end},
}

local function each(which)
  local at = 4
  while ARGV[at] do
    local part = parts[ARGV[at]]
    local refused = part[which] and part[which](unpack(ARGV, at + 1, at + part[1]))
    if refused then return {refused} end
    at = at + 1 + part[1]
  end
end

local refused = each(2)
if refused then return refused end
if ARGV[2] == '' then
  call('DEL', KEYS[1])
elseif ARGV[3] == '' then
  call('SET', KEYS[1], ARGV[2])
else
  call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
each(3)
return {'done'}
