-- Append one batch to one journal: check the sequence, append, send the notification, and now and then keep
-- within retention.
--
-- KEYS  1 stream   2 producer's record   then those that are needed: retention settings (with options),
--       idempotency key (only with a single entry)
-- ARGV  1 notification     2 "<epoch>-*", the epoch that the producer last saw here, 0 for none
--       3 incarnation and sequence before   4 incarnation and sequence   (16 digits each); 3 is empty where
--       the record of a producer that numbers its entries must be missing
--       5 options, in the usual case empty:
--         "k <lifetime of the record in ms> <appended> <retention field> <entries> <bytes> <age_ms>": keep the journal
--         within retention now, within this one where no other is set, and the record for so long. So many bytes have
--         been appended since this producer said so last;
--         "ok …": the same, and we begin, or our record may have expired: a missing record is then not a gap;
--         "obk …", "bk …": the same as without b, and the epoch of argument 2 lost data: bury it first if it
--         still stands
--       6… entries, each "name idempotency-key data"; behind the single one of an idempotency key the id's lifetime in ms
--
-- Answers "ok <place> <listeners> <argument 4>" | "known " and the rest of what was answered then |
-- "gap <stored sequence or nothing>" | "fenced" | "overtaken <incarnation>" |
-- "conflict <part>": the idempotency key stands for an entry of another event or other data. A place is "<id of the first entry> <time in µs>".
--
-- The record is the answers to the last batches, newest last: it makes every retry harmless, and a broken
-- pipeline unable to reorder. Options cut it to the newest eight at least, as many as may be in flight.
-- Incarnation and sequence alone are a record too: they fence every older incarnation off.
--
-- Checks come first: from the first write on nothing can fail but Redis itself, so an error means that nothing
-- was written. A retention setting that cannot be read counts as absent.
--
-- The cost: each command 0.4 µs, and each string made 1.3 ns a byte, because Redis' Lua hashes it whole.
-- So the usual case is five commands, and of long strings the entry and its notification alone.
local call, sub = redis.call, string.sub
local stream, record, notification, options = KEYS[1], KEYS[2], ARGV[1], ARGV[5]

local stored = call('GETRANGE', record, '-32', '-1')
if stored ~= ARGV[3] then
  local incarnation, theirs = sub(ARGV[4], 1, 16), sub(stored, 1, 16)
  if theirs > incarnation then
    return theirs == string.rep('9', 16) and 'fenced' or 'overtaken ' .. theirs
  end
  if theirs == incarnation then
    local rest = string.match(call('GET', record), 'ok ([%d %-]* ' .. ARGV[4] .. ')')
    return rest and 'known ' .. rest or 'gap ' .. sub(stored, 17)
  end
  if sub(options, 1, 1) ~= 'o' then return 'gap ' end
  stored = nil
end

local now = call('TIME')
local seconds, us = now[1], now[2]
if #us < 6 then us = sub('00000' .. us, -6) end
local answer

local once = KEYS[options == '' and 3 or 4]
local before, content
if once then
  local event, data = string.match(ARGV[6], '^(%S+) %S+ (.*)$')
  local digest = redis.sha1hex(data)
  content = ' ' .. event .. ' ' .. digest
  -- Where another writer has put something else there, it counts as absent.
  local place, event_then, digest_then =
    string.match(call('GET', once) or '', '^(%d+%-%d+ %d+) (%S+) (%x+)$')
  if place and event_then ~= event then return 'conflict event' end
  if place and digest_then ~= digest then return 'conflict data' end
  before = place
end
local entries, most, age, appended
if options ~= '' then
  local field, default
  appended, field, default = string.match(options, 'k %d+ (%d+) (%a+) (.*)$')
  local setting = redis.pcall('HGET', KEYS[3], field)
  for _, one in ipairs({type(setting) == 'string' and setting or '', default}) do
    entries, most, age = string.match(one, '^([1-9]%d*) ([1-9]%d*) ([1-9]%d*)$')
    if entries and math.max(#entries, #most, #age) <= 15 then break end
  end
end
if before then
  answer = 'ok ' .. before .. ' ' .. call('PUBSUB', 'NUMSUB', notification)[2] .. ' ' .. ARGV[4]
else
  local first = seconds .. us .. ' ' .. ARGV[6]
  local buries = options ~= '' and string.find(options, '^o?b')
  local id = false
  if not buries and ARGV[2] ~= '0-*' then
    -- The usual case: the journal still is the one that we last wrote to.
    id = redis.pcall('XADD', stream, ARGV[2], 'e', first)
    if type(id) == 'table' then
      -- Somebody began a new epoch meanwhile: Redis refuses lower ids. Anything else is an error.
      if not string.find(id.err, 'equal or smaller', 1, true) then return id end
      id = false
    elseif sub(id, -2) == '-0' then
      -- The journal was missing, or of an older epoch, with which Redis came back. Begin anew.
      call('DEL', stream)
      id = false
    end
  end
  if not id then
    local last = call('XREVRANGE', stream, '+', '-', 'COUNT', '1')[1]
    local standing = last and string.match(last[1], '^%d+-') .. '*'
    if standing and not (buries and standing == ARGV[2]) then
      id = call('XADD', stream, standing, 'e', first)
    else
      -- A new epoch: never one that the producer has seen, even if the clock went back.
      local epoch = math.max(tonumber(seconds .. sub(us, 1, 3)), tonumber(sub(ARGV[2], 1, -3)) + 1)
      call('DEL', stream)
      id = call('XADD', stream, string.format('%.0f-1', epoch), 'e', first)
    end
  end

  -- The notification: the first id, then every entry, each but the last with its length before it.
  local listeners
  if once or not ARGV[7] then
    listeners = call('PUBLISH', notification, id .. ' :' .. first)
  else
    local any, time = string.match(id, '^%d+-') .. '*', seconds .. us .. ' '
    local parts, at, entry = {id, ' '}, 3, first
    for i = 7, #ARGV do
      parts[at], parts[at + 1], parts[at + 2] = #entry, ':', entry
      at = at + 3
      entry = time .. ARGV[i]
      call('XADD', stream, any, 'e', entry)
    end
    parts[at], parts[at + 1] = ':', entry
    listeners = call('PUBLISH', notification, table.concat(parts))
  end
  -- Turning a number into text is expensive, and these are the usual ones.
  listeners = listeners == 0 and ' 0 ' or listeners == 1 and ' 1 ' or ' ' .. listeners .. ' '
  answer = 'ok ' .. id .. ' ' .. seconds .. us .. listeners .. ARGV[4]
  if once then
    call('SET', once, id .. ' ' .. seconds .. us .. content, 'PX', ARGV[7])
  end

  if options ~= '' then
    -- The age is looked at every 100 s of writing at the latest, so that much is added.
    call('PEXPIRE', stream, string.format('%.0f', tonumber(age) + 100000))
    call('XTRIM', stream, 'MAXLEN', entries)
    most = tonumber(most)
    -- To measure a journal takes 50 ns for each 4 KiB of it. So it is measured once while a 64th of what it may hold
    -- is written: by chance, which is right for any number of writers and needs nothing to be counted. The
    -- microseconds are the dice.
    if tonumber(seconds .. us) % (most / 64) < tonumber(appended) then
      local used = call('MEMORY', 'USAGE', stream, 'SAMPLES', '0')
      if used > most + 8192 then
        local length = call('XLEN', stream)
        call('XTRIM', stream, 'MAXLEN', math.max(1, math.floor(length * most / used)))
      end
    end
    local cutoff = string.format('%.0f', tonumber(seconds .. us) - tonumber(age) * 1000)
    local function is_old(row) return sub(row[2][2], 1, 16) < cutoff end
    local oldest = call('XRANGE', stream, '-', '+', 'COUNT', '1')
    for _ = 1, 8 do
      if not oldest[1] or not is_old(oldest[1]) then break end
      local rows = call('XRANGE', stream, '-', '+', 'COUNT', '128')
      local young = nil
      for _, row in ipairs(rows) do
        if not is_old(row) then young = row[1] break end
      end
      -- All of these are old, and the entry just written is not: there is one after them.
      call('XTRIM', stream, 'MINID', young or rows[#rows][1])
      if not young then call('XDEL', stream, rows[#rows][1]) end
      oldest = call('XRANGE', stream, '-', '+', 'COUNT', '1')
    end
  end
end

if options == '' then
  call('APPEND', record, answer)
else
  -- Eight answers fit into 800 bytes.
  local newest = (stored and call('GETRANGE', record, '-800', '-1') or '') .. answer
  call('SET', record, sub(newest, (string.find(newest, 'ok', 1, true))), 'PX', string.match(options, '%d+'))
end
return answer
