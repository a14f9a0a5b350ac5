-- Append one batch to one journal: check the sequence, append, ring the bell, and now and then keep
-- within retention.
--
-- KEYS  1 stream   2 producer's record   3 retention settings   4 once-id (only with a single entry)
-- ARGV  1 bell     2 epoch that the producer last saw here, or "0"
--       3 incarnation and sequence before   4 incarnation and sequence   (16 digits each)
--       5 flags: "o" we begin, or our record may have expired: that it is missing is no gap;
--                "k" keep within retention now;
--                "b" the epoch of argument 2 lost data: bury it first if it still stands
--       6 retention field   7 default retention "entries bytes age_ms"   8 lifetime of the once-id in ms
--       9… entries, each "name once-id data"
--
-- Answers "ok <place> <listeners>" | "known <place> <listeners>" | "gap <stored sequence or nothing>" |
-- "fenced". A place is "<id of the first entry> <count> <time in µs>".
--
-- The record is a line per batch, newest last: newline, place, space, incarnation and sequence. Most of the
-- time it is only appended to, so the usual case costs five short calls; "k" cuts it to the newest eight,
-- as many as may be in flight. It makes every retry harmless, and a broken pipeline unable to reorder.
local call, sub = redis.call, string.sub
local stream, record, bell = KEYS[1], KEYS[2], ARGV[1]
local count = #ARGV - 8
local flags = ARGV[5]
local kept = string.find(flags, 'k', 1, true)

local stored = call('GETRANGE', record, '-32', '-1')
if stored ~= ARGV[3] then
  local incarnation = sub(ARGV[4], 1, 16)
  local theirs = sub(stored, 1, 16)
  if theirs > incarnation then return 'fenced' end
  if theirs == incarnation then
    local place = string.match(call('GET', record), '\n([^\n]*) ' .. ARGV[4])
    if not place then return 'gap ' .. sub(stored, 17) end
    return 'known ' .. place .. ' ' .. call('PUBSUB', 'NUMSUB', bell)[2]
  end
  if not string.find(flags, 'o', 1, true) then return 'gap ' end
  call('DEL', record)
  kept = true
end

local now = call('TIME')
local us = now[2]
if #us < 6 then us = sub('00000' .. us, -6) end
local time = now[1] .. us
local place, listeners

local before = KEYS[4] and call('GET', KEYS[4])
if before then
  place = before
  listeners = call('PUBSUB', 'NUMSUB', bell)[2]
else
  local first = time .. ' ' .. ARGV[9]
  local epoch, buries = ARGV[2], string.find(flags, 'b', 1, true)
  local id = false
  if epoch ~= '0' and not buries then
    -- The usual case: the journal still is the one that we last wrote to.
    id = redis.pcall('XADD', stream, 'NOMKSTREAM', epoch .. '-*', 'e', first)
    if type(id) == 'table' then
      -- Somebody began a new epoch meanwhile: Redis refuses lower ids. Anything else is an error.
      if not string.find(id.err, 'equal or smaller', 1, true) then return id end
      id = false
    elseif id and sub(id, -2) == '-0' then
      -- Our epoch is ahead of the journal's: Redis came back with an older one. Begin anew.
      call('DEL', stream)
      id = false
    end
  end
  if not id then
    local last = call('XREVRANGE', stream, '+', '-', 'COUNT', '1')[1]
    local standing = last and string.match(last[1], '^%d+')
    if standing and not (buries and standing == epoch) then
      epoch = standing
      id = call('XADD', stream, epoch .. '-*', 'e', first)
    else
      -- Born again: never with an epoch that its producer has seen, even if the clock went back.
      epoch = string.format('%.0f', math.max(tonumber(sub(time, 1, 13)), tonumber(epoch) + 1))
      call('DEL', stream)
      id = call('XADD', stream, epoch .. '-1', 'e', first)
    end
  end
  place = id .. ' ' .. count .. ' ' .. time

  -- The bell: the first id, then every entry, each but the last with its length before it.
  if count == 1 then
    listeners = call('PUBLISH', bell, id .. ' :' .. first)
  else
    local any = epoch .. '-*'
    local parts, entry = {id, ' '}, first
    for i = 10, #ARGV do
      local at = #parts
      parts[at + 1], parts[at + 2], parts[at + 3] = #entry, ':', entry
      entry = time .. ' ' .. ARGV[i]
      call('XADD', stream, any, 'e', entry)
    end
    parts[#parts + 1] = ':'
    parts[#parts + 1] = entry
    listeners = call('PUBLISH', bell, table.concat(parts))
  end
  if KEYS[4] then
    call('SET', KEYS[4], place, 'PX', ARGV[8])
  end

  if kept then
    local setting = call('HGET', KEYS[3], ARGV[6]) or ARGV[7]
    local entries, most, age = string.match(setting, '^(%d+) (%d+) (%d+)$')
    -- The age is looked at every 100 s of writing at the latest, so that much is added.
    call('PEXPIRE', stream, string.format('%.0f', tonumber(age) + 100000))
    call('XTRIM', stream, 'MAXLEN', entries)
    local used = call('MEMORY', 'USAGE', stream, 'SAMPLES', '0')
    if used > tonumber(most) + 8192 then
      local length = call('XLEN', stream)
      call('XTRIM', stream, 'MAXLEN', math.max(1, math.floor(length * tonumber(most) / used)))
    end
    local cutoff = string.format('%.0f', tonumber(time) - tonumber(age) * 1000)
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

local line = '\n' .. place .. ' ' .. ARGV[4]
if kept then
  local recent = {string.match(call('GETRANGE', record, '-700', '-1'),
    '(\n[^\n]*)(\n[^\n]*)(\n[^\n]*)(\n[^\n]*)(\n[^\n]*)(\n[^\n]*)(\n[^\n]*)$')}
  if #recent == 7 then
    call('SET', record, table.concat(recent) .. line, 'PX', '900000')
  else
    call('APPEND', record, line)
    call('PEXPIRE', record, '900000')
  end
else
  call('APPEND', record, line)
end
return 'ok ' .. place .. ' ' .. listeners
