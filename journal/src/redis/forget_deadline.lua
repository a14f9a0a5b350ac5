-- Takes a deadline off the list, if it has fallen due: one that was put there anew meanwhile stays.
--
-- KEYS 1 deadlines   ARGV 1 member
local due = redis.call('ZSCORE', KEYS[1], ARGV[1])
local now = redis.call('TIME')
if due and tonumber(due) <= math.floor(now[1] * 1000 + now[2] / 1000) then redis.call('ZREM', KEYS[1], ARGV[1]) end
