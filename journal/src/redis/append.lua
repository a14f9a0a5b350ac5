-- Append one batch to one journal: check the sequence, append, keep within retention, ring the bell.
--
-- KEYS  1 stream   2 producer's record   3 retention settings   4 once-id (only with a single entry)
-- ARGV  1 bell     2 retention field     3 default retention "entries bytes age_ms"
--       4 incarnation   5 sequence before   6 sequence   (16 digits each, so that they compare as text)
--       7 "1": we begin, or our record may have expired: that it is missing is no gap
--       8 epoch in which lost data was noticed: bury it first if it still stands, or ""
--       9 lifetime of the once-id in ms
--       10 newest epoch that the producer knows, or "0": a new one must be beyond it
--       11… entries, each "name once-id data"
--
-- Answers {"ok"|"known", place, listeners} · {"gap", stored sequence or ""} · {"fenced"}.
-- A place is 45 characters: epoch 13, n of the first entry 12, count 4, time in µs 16.
--
-- The record is: incarnation 16, sequence 16, then the places of the last 8 batches, newest first. It
-- makes every retry harmless, and a broken pipeline unable to reorder. Fixed widths keep the usual
-- case down to one comparison and two substrings.
local PLACE, WINDOW, RECORD_MS = 45, 8, '900000'
local stream, record = KEYS[1], KEYS[2]
local incarnation, sequence = ARGV[4], ARGV[6]
local count = #ARGV - 10

local known = redis.call('GET', record)
local follows = known and string.sub(known, 1, 32) == incarnation .. ARGV[5]
if not follows then
  if known and string.sub(known, 1, 16) > incarnation then
    return {'fenced'}
  end
  if known and string.sub(known, 1, 16) == incarnation then
    local stored = string.sub(known, 17, 32)
    local back = tonumber(stored) - tonumber(sequence)
    local at = 33 + back * PLACE
    if back >= 0 and #known >= at + PLACE - 1 then
      return {'known', string.sub(known, at, at + PLACE - 1), redis.call('PUBSUB', 'NUMSUB', ARGV[1])[2]}
    end
    return {'gap', stored}
  end
  if ARGV[7] ~= '1' then
    return {'gap', ''}
  end
  known = nil
end

local now = redis.call('TIME')
local time = now[1] .. string.sub('00000' .. now[2], -6)
local epoch = known and string.sub(known, 33, 45)
local place, listeners

local before = KEYS[4] and redis.call('GET', KEYS[4])
if before then
  place = before
  listeners = redis.call('PUBSUB', 'NUMSUB', ARGV[1])[2]
else
  local first = time .. ' ' .. ARGV[11]
  local id = false
  if epoch and ARGV[8] == '' then
    -- The usual case: the journal still is the one we last wrote to.
    id = redis.pcall('XADD', stream, 'NOMKSTREAM', epoch .. '-*', 'e', first)
    if type(id) == 'table' then
      -- Somebody began a new epoch meanwhile: Redis refuses lower ids. Anything else is an error.
      if not string.find(id.err, 'equal or smaller', 1, true) then return id end
      id = false
    end
  end
  if not id then
    local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', '1')[1]
    local standing = last and string.match(last[1], '^%d+')
    if standing and standing == ARGV[8] then
      redis.call('DEL', stream)
      standing = nil
    end
    if standing then
      epoch = standing
      id = redis.call('XADD', stream, epoch .. '-*', 'e', first)
    else
      -- Born again: never with an epoch that anybody could have seen, even if the clock went back.
      local fresh = tonumber(string.sub(time, 1, 13))
      fresh = math.max(fresh, (tonumber(epoch) or 0) + 1, (tonumber(ARGV[8]) or 0) + 1, tonumber(ARGV[10]) + 1)
      epoch = string.format('%.0f', fresh)
      redis.call('DEL', stream)
      id = redis.call('XADD', stream, epoch .. '-1', 'e', first)
    end
  end
  local n = string.sub(id, #epoch + 2)
  if n == '0' then
    -- Our epoch is ahead of the journal's: Redis came back with an older one. Begin anew.
    epoch = string.format('%.0f', tonumber(epoch) + 1)
    redis.call('DEL', stream)
    id = redis.call('XADD', stream, epoch .. '-1', 'e', first)
    n = '1'
  end
  place = string.format('%13s%12s%4d%s', epoch, n, count, time)

  -- The bell: the first id, then every entry with its length.
  local bell
  local bytes = #first
  if count == 1 then
    bell = id .. ' ' .. #first .. ':' .. first
  else
    local parts = {id, ' ', #first, ':', first}
    local any = epoch .. '-*'
    for i = 12, #ARGV do
      local entry = time .. ' ' .. ARGV[i]
      redis.call('XADD', stream, any, 'e', entry)
      local at = #parts
      parts[at + 1], parts[at + 2], parts[at + 3] = #entry, ':', entry
      bytes = bytes + #entry
    end
    bell = table.concat(parts)
  end
  if KEYS[4] then
    redis.call('SET', KEYS[4], place, 'PX', ARGV[9])
  end

  -- Retention now and then: every 64 entries, for large ones, and every 100 seconds of writing.
  local n0 = tonumber(n) - 1
  if not known or string.sub(time, 1, 8) ~= string.sub(known, 62, 69) or bytes >= 16384
    or math.floor(n0 / 64) ~= math.floor((n0 + count) / 64) then
    local kept = redis.call('HGET', KEYS[3], ARGV[2]) or ARGV[3]
    local entries, most, age = string.match(kept, '^(%d+) (%d+) (%d+)$')
    redis.call('PEXPIRE', stream, string.format('%.0f', tonumber(age) + 100000))
    redis.call('XTRIM', stream, 'MAXLEN', entries)
    local used = redis.call('MEMORY', 'USAGE', stream, 'SAMPLES', '0')
    if used > tonumber(most) + 8192 then
      local length = redis.call('XLEN', stream)
      redis.call('XTRIM', stream, 'MAXLEN', math.max(1, math.floor(length * tonumber(most) / used)))
    end
    local cutoff = string.format('%.0f', tonumber(time) - tonumber(age) * 1000)
    local function is_old(row) return string.sub(row[2][2], 1, 16) < cutoff end
    local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', '1')
    for _ = 1, 8 do
      if not oldest[1] or not is_old(oldest[1]) then break end
      oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', '128')
      local young = nil
      for _, row in ipairs(oldest) do
        if not is_old(row) then young = row[1] break end
      end
      if not young then
        local last_n = tonumber(string.match(oldest[#oldest][1], '%d+$'))
        young = epoch .. '-' .. string.format('%.0f', last_n + 1)
      end
      redis.call('XTRIM', stream, 'MINID', young)
      oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', '1')
    end
  end
  listeners = redis.call('PUBLISH', ARGV[1], bell)
end

redis.call('SET', record,
  incarnation .. sequence .. place .. (known and string.sub(known, 33, 32 + (WINDOW - 1) * PLACE) or ''),
  'PX', RECORD_MS)
return {'ok', place, listeners}
