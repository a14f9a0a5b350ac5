-- Which commands this user may not run. Runs none of them and writes nothing.
--
-- ARGV each a command with its arguments, a JSON array
-- Answers the names of the commands, one space between two.
local denied = {}
for _, command in ipairs(ARGV) do
  command = cjson.decode(command)
  local known, allowed = pcall(redis.acl_check_cmd, unpack(command))
  if not (known and allowed) then denied[#denied + 1] = command[1] end
end
return table.concat(denied, ' ')
