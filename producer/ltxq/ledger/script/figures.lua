-- Numbers for metrics and estimates. Nothing here may make a step fail.

-- Counts one event: submitted, claimed, succeeded, cancelled, failed:<code>, lost, lease_ended, given_back,
-- sent_again, webhook_delivered, webhook_failed, webhook_given_up.
local function count(id, what)
  local queue = redis.pcall('HGET', key('job', id), 'queue')
  if type(queue) == 'string' then
    local so_far = redis.pcall('HINCRBY', key('totals', queue), what, 1)
    if so_far == 1 and redis.call('SISMEMBER', key('queues'), queue) == 0 then  -- a forgotten queue
      redis.call('DEL', key('totals', queue))
      redis.pcall('HINCRBY', key('totals', OTHER), what, 1)
    end
  end
end

-- Adds the time since the job's claim to the moving average of its queue.
local function note_pace(id, field)
  local queue, started = unpack(get(id, 'queue', 'started'))
  local took, name = now - (tonumber(started) or now), key('pace', queue or '')
  local before = redis.pcall('HGET', name, field)
  before = type(before) == 'string' and tonumber(before) or took
  redis.pcall('HSET', name, field, math.floor(before + (took - before) * NEWEST))
end

-- {jobs that are claimed before a queued job ('' while it may not start yet), ready workers, pace: gpu, whole}.
local function find_queue_position(id)
  local state, queue, band, seq = unpack(get(id, 'state', 'queue', 'band', 'seq'))
  if state ~= 'queued' and state ~= 'running' then return {} end
  local ahead = -1
  if state == 'queued' then
    ahead = redis.call('ZRANK', key('waiting', queue, band), as_waiting(id, seq))
    if not ahead then return {'', 0, '', ''} end
    for b = 0, checked_band(band) - 1 do ahead = ahead + redis.call('ZCARD', key('waiting', queue, b)) end
  end
  local alive = redis.call('ZCOUNT', key('workers', queue), now - ALIVE, '+inf')
  local gpu, whole = unpack(redis.call('HMGET', key('pace', queue), 'gpu', 'whole'))
  return {ahead, alive, gpu or '', whole or ''}
end

local function queue_position(id)
  local readable, found = pcall(find_queue_position, id)
  return readable and found or {}
end

-- The figures that metrics need beside `queues` and `fleet`.
function operation.totals()
  local rows, queues = {}, redis.call('SMEMBERS', key('queues'))
  queues[#queues + 1] = OTHER
  for _, queue in ipairs(queues) do
    local counts = redis.pcall('HGETALL', key('totals', queue))
    if not counts.err then rows[#rows + 1] = {queue, counts} end
  end
  local due = redis.call('ZRANGE', key('webhooks'), 0, 0, 'WITHSCORES')[2]
  local swept = tonumber(redis.call('GET', key('swept')) or '')
  local memory = redis.pcall('INFO', 'memory')
  return {
    rows,
    redis.call('ZCARD', key('webhooks')),
    due and math.max(0, now - due) or 0,
    redis.call('ZCOUNT', key('running'), '-inf', now),
    redis.call('ZCARD', key('unreported')),
    swept and now - swept or '',
    type(memory) == 'string' and string.match(memory, 'used_memory:(%d+)') or '',
    type(memory) == 'string' and string.match(memory, 'maxmemory:(%d+)') or '',
    redis.call('ZCARD', key('undeleted')),
  }
end
