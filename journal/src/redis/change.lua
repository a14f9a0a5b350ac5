-- One atomic step of a record: compare, replace, and tell everybody. It first checks everything, and reads
-- each key that it will write, so that a key of a wrong type is found before anything has changed.
--
-- KEYS  1 state   2… those that the parts below name by their numbers
-- ARGV  1 expected state, '' for none   2 new state, '' for none   3 its lifetime in ms, '' for ever
--       4… parts:
--   conditions  fenced <producer's record> | is-due <deadlines> <member> | room <index> <most> |
--               absent <record>
--   effects     append <stream> <notification> <settings> <retention field> <its default> <row> |
--               wait <those six> <list> <entries> <counts> <member> <class> <sender> <limits> |
--               wait-no-more <list> <entries> <counts> <member> |
--               put <index> <member> <value> | remove <index> <member> | clear <index> |
--               write <record> <state> <lifetime ms> |
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

-- What waits: a list of members, by when they came; their entries, each "<class> <bytes> <length of sender> <id>
-- <sender> <entry>"; and how many wait of each class and sender, and in all. Nothing here is taken for a number
-- that is none: another writer must not make a later step fail in its middle.
local function count(counts, field) return tonumber(call('HGET', counts, field) or 0) or 0 end

local function add(counts, field, number)
  local sum = count(counts, field) + number
  if sum > 0 then
    call('HSET', counts, field, string.format('%.0f', sum))
  else
    call('HDEL', counts, field)
  end
end

local function wait_no_more(list, entries, counts, member)
  local class, bytes, length, rest =
    string.match(call('HGET', entries, member) or '', '^(%a) (%d+) (%d+) %S+ (.*)$')
  if class then
    add(counts, class .. ' ' .. sub(rest, 1, tonumber(length)), -1)
    if class == 'o' then
      add(counts, 'all', -1)
      add(counts, 'bytes', -tonumber(bytes))
    end
  end
  call('HDEL', entries, member)
  call('ZREM', list, member)
end

local function check_types(list, entries, counts)
  call('ZCARD', key(list))
  call('HLEN', key(entries))
  call('HLEN', key(counts))
end

local parts
local function append(...) return parts['append'][3](...) end

-- Each part: how many arguments it has, its check, which answers why the step is refused, and what it does.
parts = {
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
  ['absent'] = {1, function(record)
    if call('GET', key(record)) then return 'unmet' end
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
    -- Now and then: it costs more than all else here.
    if tonumber(string.match(id, '%d+$')) % 16 == 0 then
      local used, most = call('MEMORY', 'USAGE', name, 'SAMPLES', '0'), kept[stream].bytes
      if used > most + 8192 then
        call('XTRIM', name, 'MAXLEN', math.max(1, math.floor(call('XLEN', name) * most / used)))
      end
    end
    call('PUBLISH', notification, id .. ' :' .. entry)
  end},
  ['wait'] = {13, function(stream, notification, settings, field, default, row, list, entries, counts, _, class, sender, limits)
    parts['append'][2](stream, notification, settings, field, default)
    check_types(list, entries, counts)
    local per_sender, all, bytes, cancels = string.match(limits, '^(%d+) (%d+) (%d+) (%d+)$')
    if not per_sender then return end
    local mine = count(key(counts), class .. ' ' .. sender)
    if class ~= 'o' then
      if mine >= tonumber(cancels) then return 'unmet' end
    elseif mine >= tonumber(per_sender) or count(key(counts), 'all') >= tonumber(all)
      or count(key(counts), 'bytes') + #row > tonumber(bytes) then
      return 'unmet'
    end
  end, function(stream, notification, settings, field, default, row, list, entries, counts, member, class, sender)
    append(stream, notification, settings, field, default, row)
    list, entries, counts = key(list), key(entries), key(counts)
    wait_no_more(list, entries, counts, member)
    local newest = call('ZREVRANGE', list, '0', '0', 'WITHSCORES')[2] or '0'
    call('ZADD', list, string.format('%.0f', math.max(tonumber(time), tonumber(newest) + 1)), member)
    call('HSET', entries, member,
      class .. ' ' .. #row .. ' ' .. #sender .. ' ' .. last[stream] .. ' ' .. sender .. ' ' .. time .. ' ' .. row)
    add(counts, class .. ' ' .. sender, 1)
    if class == 'o' then
      add(counts, 'all', 1)
      add(counts, 'bytes', #row)
    end
    -- Longer than anything may wait: nothing stays for ever, whatever is lost.
    for _, name in ipairs({list, entries, counts}) do call('PEXPIRE', name, '172800000') end
  end},
  ['wait-no-more'] = {4, check_types, function(list, entries, counts, member)
    wait_no_more(key(list), key(entries), key(counts), member)
  end},
  ['put'] = {3, function(index) call('HLEN', key(index)) end,
    function(index, member, value) call('HSET', key(index), member, value) end},
  ['remove'] = {2, function(index) call('HLEN', key(index)) end,
    function(index, member) call('HDEL', key(index), member) end},
  ['clear'] = {1, function(index) call('HLEN', key(index)) end,
    function(index) call('DEL', key(index)) end},
  ['write'] = {3, function(record) call('GET', key(record)) end,
    function(record, state, lifetime) call('SET', key(record), state, 'PX', lifetime) end},
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
