-- Renews the leases of one partition that are there as they were written last.
--
-- KEYS 1 deadlines   2… the agents on the leases' channels, each with its incarnation and the lease's version
-- ARGV 1 ms   2… for each lease: member, agent, incarnation and version
-- Answers the places (from 1) of the leases that are not there, or not so.
local now = redis.call('TIME')
local ends = string.format('%.0f', math.floor(now[1] * 1000 + now[2] / 1000) + tonumber(ARGV[1]))
local missing = {}
for i = 2, #KEYS do
  local member, agent, version = ARGV[3 * i - 4], ARGV[3 * i - 3], ARGV[3 * i - 2]
  local is_there = redis.call('HGET', KEYS[i], agent) == version
    -- Not changed: it is not there, or was renewed in this very millisecond.
    and (redis.call('ZADD', KEYS[1], 'XX', 'CH', ends, member) == 1 or redis.call('ZSCORE', KEYS[1], member))
  if not is_there then missing[#missing + 1] = i - 1 end
end
return missing
