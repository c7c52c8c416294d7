-- What is counted for metrics and estimates. Nothing here may be the reason that a step fails.

-- One more of what metrics are made of: submitted, claimed, succeeded, cancelled, failed:<code>, lost,
-- lease_ended, given_back, sent_again, webhook_delivered, webhook_failed, webhook_given_up. Never
-- the reason that a step fails.
local function count(id, what)
  local queue = redis.pcall('HGET', key('job', id), 'queue')
  if type(queue) == 'string' then
    local so_far = redis.pcall('HINCRBY', key('totals', queue), what, 1)
    if so_far == 1 and redis.call('SISMEMBER', key('queues'), queue) == 0 then  -- it was forgotten
      redis.call('DEL', key('totals', queue))
      redis.pcall('HINCRBY', key('totals', OTHER), what, 1)
    end
  end
end

-- What a job took goes into the moving average of its queue. An estimate: it must never be the
-- reason that a job cannot end.
local function note_pace(id, field)
  local queue, started = unpack(get(id, 'queue', 'started'))
  local took, name = now - (tonumber(started) or now), key('pace', queue or '')
  local before = redis.pcall('HGET', name, field)
  before = type(before) == 'string' and tonumber(before) or took
  redis.pcall('HSET', name, field, math.floor(before + (took - before) * NEWEST))
end

-- Of a queued job: how many are taken before it, '' where its time has not come. Of any: how many workers there are for it, and
-- the pace of its queue.
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

-- What metrics are made of beside `queues` and `fleet`.
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
  }
end
