-- Which of the commands of append.lua this user may not run. Runs none of them and writes nothing.
--
-- KEYS 1 stream   2 producer's record   3 retention settings   4 idempotency key   ARGV 1 notification
-- Answers the commands, one space between two.
local denied = {}
local function needs(...)
  local known, allowed = pcall(redis.acl_check_cmd, ...)
  if not (known and allowed) then denied[#denied + 1] = (...) end
end
needs('GETRANGE', KEYS[2], '-32', '-1')
needs('GET', KEYS[2])
needs('APPEND', KEYS[2], 'x')
needs('SET', KEYS[2], 'x', 'PX', '1')
needs('GET', KEYS[4])
needs('SET', KEYS[4], 'x', 'PX', '1')
needs('HGET', KEYS[3], 'session')
needs('XADD', KEYS[1], '*', 'e', 'x')
needs('XREVRANGE', KEYS[1], '+', '-', 'COUNT', '1')
needs('XRANGE', KEYS[1], '-', '+', 'COUNT', '1')
needs('XLEN', KEYS[1])
needs('XTRIM', KEYS[1], 'MAXLEN', '1')
needs('XDEL', KEYS[1], '1-1')
needs('DEL', KEYS[1])
needs('PEXPIRE', KEYS[1], '1')
needs('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', '0')
needs('PUBLISH', ARGV[1], 'x')
needs('PUBSUB', 'NUMSUB', ARGV[1])
needs('TIME')
return table.concat(denied, ' ')
