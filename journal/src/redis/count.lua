-- How many of a replica subscribe to a channel. A count that was not reported for long is removed: its replica died.
--
-- KEYS 1 counts   ARGV 1 replica   2 how many   3 for how long that holds, in ms
local call = redis.call
local now = call('TIME')
local ms = math.floor(now[1] * 1000 + now[2] / 1000)
local said = call('HGETALL', KEYS[1])
for i = 1, #said, 2 do
  local ends = tonumber(string.match(said[i + 1], '^%d+ (%d+)$') or '0')
  if ends <= ms then call('HDEL', KEYS[1], said[i]) end
end
if ARGV[2] == '0' then
  call('HDEL', KEYS[1], ARGV[1])
else
  call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. string.format('%.0f', ms + tonumber(ARGV[3])))
end
call('PEXPIRE', KEYS[1], ARGV[3])
