-- Runs the operation. If it met a corrupt index, the index is deleted and the operation runs again: each may
-- be repeated.
local function run() return operation[ARGV[1]](unpack(ARGV, 2)) end
local went_well, answer = pcall(run)
if went_well then return answer end
local text = type(answer) == 'table' and answer.err or answer
if string.find(text, 'WRONGTYPE', 1, true) then
  local owners = redis.pcall('SRANDMEMBER', key('owners'), OWNERS)
  if repair_indexes(owners.err and {} or owners) then return run() end
end
error(answer)
