-- One atomic step of a record: compare, replace, and tell everybody. It first checks everything, and reads
-- each key that it will write, so that a key of a wrong type is found before anything has changed.
--
-- KEYS  1 state   2… those that the parts below name by their numbers
-- ARGV  1 expected state, '' for none   2 new state, '' for none   3 its lifetime in ms, '' for ever
--       4… parts:
--   conditions  fenced <producer's record> | is-due <deadlines> <member> |
--               in-time <deadlines> <member> | room <index> <most> <member> |
--               part <index> <most> <member> <owner> | absent <record>
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
-- How many arguments each part has.
local ARGUMENTS = {
  ['fenced'] = 1, ['is-due'] = 2, ['in-time'] = 2, ['room'] = 3, ['part'] = 4, ['absent'] = 1,
  ['append'] = 6, ['wait'] = 13, ['wait-no-more'] = 4, ['put'] = 3, ['remove'] = 2, ['clear'] = 1,
  ['write'] = 3, ['due'] = 3, ['never'] = 2, ['fence'] = 2, ['notify'] = 2,
}
-- The newest id of each stream.
local last = {}
-- How much a stream keeps: what is set, where that can be read.
local kept = {}
-- The step's command among those that wait: see find_place.
local place

local function key(number) return KEYS[tonumber(number)] end

-- A retention setting; nothing where it is malformed, or a number is beyond what Redis takes.
local function keep(setting)
  local entries, bytes, age = string.match(type(setting) == 'string' and setting or '', '^([1-9]%d*) ([1-9]%d*) ([1-9]%d*)$')
  if entries and math.max(#entries, #bytes, #age) <= 15 then
    return {entries = entries, bytes = tonumber(bytes), age = tonumber(age)}
  end
end

local function find_end(stream, settings, field, default)
  local head = call('XREVRANGE', key(stream), '+', '-', 'COUNT', '1')[1]
  last[stream] = head and head[1] or nil
  local setting = redis.pcall('HGET', key(settings), field)
  kept[stream] = keep(setting) or keep(default)
end

local function append(stream, notification, row)
  local entry, name, keep = time .. ' ' .. row, key(stream), kept[stream]
  local id
  if last[stream] then
    id = call('XADD', name, 'MAXLEN', keep.entries, string.match(last[stream], '^%d+') .. '-*', 'e', entry)
  else
    call('DEL', name)
    id = call('XADD', name, 'MAXLEN', keep.entries, sub(time, 1, 13) .. '-1', 'e', entry)
  end
  last[stream] = id
  -- As in append.lua, whose writers look at the age every 100 s.
  call('PEXPIRE', name, string.format('%.0f', keep.age + 100000))
  -- Now and then, as in append.lua: it costs more than all else here.
  if tonumber(time) % (keep.bytes / 64) < #entry then
    local used = call('MEMORY', 'USAGE', name, 'SAMPLES', '0')
    if used and used > keep.bytes + 8192 then
      call('XTRIM', name, 'MAXLEN', math.max(1, math.floor(call('XLEN', name) * keep.bytes / used)))
    end
  end
  call('PUBLISH', notification, id .. ' :' .. entry)
end

-- Where the bytes are counted of the sender whose commands of some class are counted in `field`.
local function bytes_of(field) return 'b' .. sub(field, 2) end

-- What waits: a list of members, by when they came; their entries, each "<class> <bytes> <length of sender> <id>
-- <sender> <entry>"; and how many wait of each class and sender and in all, in number and bytes. Finds the place
-- that a member holds, and the counts that the step may change. What is not a number is not taken for one: another writer must
-- not make a later step fail in its middle.
local function find_place(list, entries, counts, member, mine)
  local class, bytes, length, rest =
    string.match(call('HGET', key(entries), member) or '', '^(%a) (%d+) (%d+) %S+ (.*)$')
  place = {list = key(list), entries = key(entries), counts = key(counts), member = member, sums = {}}
  if class then place.held, place.bytes = class .. ' ' .. sub(rest, 1, tonumber(length)), tonumber(bytes) end
  if not (class or mine) then
    call('ZCARD', place.list)
    return
  end
  place.newest = call('ZREVRANGE', place.list, '0', '0', 'WITHSCORES')[2] or '0'
  local fields = {'all', 'bytes', place.held or mine, mine or place.held}
  fields[5], fields[6] = bytes_of(fields[3]), bytes_of(fields[4])
  local found = call('HMGET', place.counts, unpack(fields))
  for i, field in ipairs(fields) do place.sums[field] = tonumber(found[i] or 0) or 0 end
end

-- Counts one that waits, or with a `sign` of -1 no longer.
local function count(field, bytes, sign)
  local sums = place.sums
  sums[field] = sums[field] + sign
  if sub(field, 1, 1) == 'o' then
    sums['all'], sums['bytes'] = sums['all'] + sign, sums['bytes'] + sign * bytes
    sums[bytes_of(field)] = sums[bytes_of(field)] + sign * bytes
  end
end

local function leave_place()
  if not place.held then return end
  count(place.held, place.bytes, -1)
  call('HDEL', place.entries, place.member)
  call('ZREM', place.list, place.member)
end

local function write_counts()
  local set, gone = {}, {}
  for field, sum in pairs(place.sums) do
    if sum > 0 then
      set[#set + 1], set[#set + 2] = field, string.format('%.0f', sum)
    else
      gone[#gone + 1] = field
    end
  end
  if #set > 0 then call('HSET', place.counts, unpack(set)) end
  if #gone > 0 then call('HDEL', place.counts, unpack(gone)) end
end

-- Whether there is room for the entry `row` of this class and sender; '' for no limits.
local function has_room(class, mine, row, limits)
  local per_sender, all, bytes, bytes_per_sender, cancels = string.match(limits, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  if not per_sender then return true end
  local sums = place.sums
  if class ~= 'o' then return sums[mine] < tonumber(cancels) end
  return sums[mine] < tonumber(per_sender) and sums['all'] < tonumber(all) and sums['bytes'] + #row <= tonumber(bytes)
    and sums[bytes_of(mine)] + #row <= tonumber(bytes_per_sender)
end

-- Reads what a part will write; answers why the step is refused.
local function check(part, a, b, c, d, e, f, list, entries, counts, member, class, sender, limits)
  if part == 'append' then
    find_end(a, c, d, e)
  elseif part == 'wait' then
    find_end(a, c, d, e)
    local mine = class .. ' ' .. sender
    find_place(list, entries, counts, member, mine)
    if not has_room(class, mine, f, limits) then return 'unmet' end
  elseif part == 'wait-no-more' then
    find_place(a, b, c, d)
  elseif part == 'fenced' then
    if call('GET', key(a)) == FENCE then return 'fenced' end
  elseif part == 'is-due' or part == 'in-time' then
    local at = call('ZSCORE', key(a), b)
    local is_due = at and tonumber(at) <= ms or false
    if is_due ~= (part == 'is-due') then return 'unmet' end
  elseif part == 'room' then
    if call('HLEN', key(a)) >= tonumber(b) and not call('HGET', key(a), c) then return 'unmet' end
  elseif part == 'part' then
    if call('HLEN', key(a)) >= tonumber(b) and not call('HGET', key(a), c) then
      local held, start = 0, d .. ' '
      for _, member in ipairs(call('HKEYS', key(a))) do
        if sub(member, 1, #start) == start then held = held + 1 end
      end
      if held >= tonumber(b) then return 'unmet' end
    end
  elseif part == 'absent' then
    if call('GET', key(a)) then return 'unmet' end
  elseif part == 'put' or part == 'remove' or part == 'clear' then
    call('HLEN', key(a))
  elseif part == 'due' or part == 'never' then
    call('ZCARD', key(a))
  end
end

local function act(part, a, b, c, d, e, f, list, entries, counts, member, class, sender)
  if part == 'append' then
    append(a, b, f)
  elseif part == 'wait' then
    append(a, b, f)
    leave_place()
    count(class .. ' ' .. sender, #f, 1)
    local at = math.max(tonumber(time), tonumber(place.newest) + 1)
    call('ZADD', place.list, string.format('%.0f', at), member)
    call('HSET', place.entries, member,
      class .. ' ' .. #f .. ' ' .. #sender .. ' ' .. last[a] .. ' ' .. sender .. ' ' .. time .. ' ' .. f)
    write_counts()
    -- Longer than anything may wait: nothing stays for ever, whatever is lost.
    call('PEXPIRE', place.list, '172800000')
    call('PEXPIRE', place.entries, '172800000')
    call('PEXPIRE', place.counts, '172800000')
  elseif part == 'wait-no-more' then
    -- Also where its entry is missing or cannot be read.
    if not place.held then call('ZREM', place.list, place.member) end
    leave_place()
    write_counts()
  elseif part == 'put' then
    call('HSET', key(a), b, c)
  elseif part == 'remove' then
    call('HDEL', key(a), b)
  elseif part == 'clear' then
    call('DEL', key(a))
  elseif part == 'write' then
    call('SET', key(a), b, 'PX', c)
  elseif part == 'due' then
    call('ZADD', key(a), string.format('%.0f', ms + tonumber(c)), b)
  elseif part == 'never' then
    call('ZREM', key(a), b)
  elseif part == 'fence' then
    call('SET', key(a), FENCE, 'PX', b)
  elseif part == 'notify' then
    call('PUBLISH', a, b)
  end
end

local function each(run)
  local at = 4
  while ARGV[at] do
    local size = ARGUMENTS[ARGV[at]]
    local refused = run(unpack(ARGV, at, at + size))
    if refused then return {refused} end
    at = at + size + 1
  end
end

local refused = each(check)
if refused then return refused end
if ARGV[2] == '' then
  call('DEL', KEYS[1])
elseif ARGV[3] == '' then
  call('SET', KEYS[1], ARGV[2])
else
  call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
each(act)
return {'done'}
