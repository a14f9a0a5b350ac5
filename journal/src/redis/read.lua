-- A page of a journal, with everything needed to judge the position that it continues.
--
-- KEYS 1 stream   ARGV 1 epoch  2 n  (both "" for everything retained)  3 most entries  4 most bytes
-- Answers {} if the journal does not exist, else {first id, head id, head time, ids and entries in turn…}.
-- The entries begin *at* the position where it is retained, so that its check can be compared; where it
-- cannot be continued they begin at the oldest.
local head = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', '1')[1]
if not head then return {} end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', '1')[1]
local epoch, head_n = string.match(head[1], '^(%d+)-(%d+)$')
local first_n = string.match(first[1], '%d+$')
local from = '-'
if ARGV[1] == epoch and tonumber(ARGV[2]) >= tonumber(first_n) - 1
  and tonumber(ARGV[2]) <= tonumber(head_n) then
  from = epoch .. '-' .. ARGV[2]
end
local page = {first[1], head[1], string.sub(head[2][2], 1, 16)}
local left, bytes = tonumber(ARGV[3]), tonumber(ARGV[4])
while left > 0 and bytes > 0 do
  local rows = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', math.min(left, 64))
  for _, row in ipairs(rows) do
    page[#page + 1] = row[1]
    page[#page + 1] = row[2][2]
    bytes = bytes - #row[2][2]
    left = left - 1
    if bytes <= 0 then break end
  end
  if #rows == 0 then break end
  from = '(' .. page[#page - 1]
end
return page
