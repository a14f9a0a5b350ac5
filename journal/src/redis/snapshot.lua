-- A record's state, and the clock.
--
-- KEYS 1 state   Answers {ms, state or false}.
local now = redis.call('TIME')
local ms = now[1] .. string.sub(string.sub('00000' .. now[2], -6), 1, 3)
return {ms, redis.call('GET', KEYS[1])}
