-- The newest position of a journal, without its data: {id, time}, or {} if it does not exist.
local head = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', '1')[1]
if not head then return {} end
return {head[1], string.sub(head[2][2], 1, 16)}
