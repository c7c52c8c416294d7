-- Workers and queues.

-- Records the workers of the supervisor `instance`: for each its name, its state, and the instance that held
-- the name before and is known to have ended. Answers {'noted', whether the host is to drain}; or
-- {'taken', name, ms of silence} if another instance holds a name, and then records nothing.
function operation.heartbeat(queue, host, instance, lease, limits, ...)
  local rows = {...}
  for i = 1, #rows, 3 do
    local silence = silence_of_holder(rows[i], instance, tonumber(lease))
    local holder = string.match(redis.call('HGET', key('holders'), rows[i]) or '', '^%S+')
    if silence and holder ~= rows[i + 2] then return {'taken', rows[i], silence} end
  end
  redis.call('SADD', key('queues'), queue)
  redis.call('ZREMRANGEBYSCORE', key('workers', queue), '-inf', now - REMEMBERED)
  if limits ~= '' then redis.call('HSET', key('limits'), queue, limits) end
  for i = 1, #rows, 3 do
    redis.call('HSET', key('holders'), rows[i], instance .. ' ' .. now)
    redis.call('HSET', key('fleet'), rows[i], cjson.encode({queue, host, rows[i + 1]}))
    redis.call('ZADD', key('seen'), now, rows[i])
    if rows[i + 1] == 'ready' then redis.call('ZADD', key('workers', queue), now, rows[i]) end
  end
  return {'noted', redis.call('SISMEMBER', key('draining'), host)}
end

-- Frees the names of a supervisor that ends.
function operation.leave(instance, ...)
  for _, worker in ipairs({...}) do
    local holder = string.match(redis.call('HGET', key('holders'), worker) or '', '^%S+')
    if holder == instance then redis.call('HDEL', key('holders'), worker) end
  end
  return 'left'
end

-- {{name, JSON of [queue, host, state], ms since its heartbeat, ids of its jobs} of each worker, draining hosts}.
function operation.fleet()
  local jobs, rows = {}, {}
  for _, id in ipairs(redis.call('ZRANGE', key('running'), 0, -1)) do
    local worker = redis.pcall('HGET', key('job', id), 'worker')
    if type(worker) == 'string' then
      jobs[worker] = jobs[worker] or {}
      table.insert(jobs[worker], id)
    end
  end
  local seen = redis.call('ZRANGE', key('seen'), 0, -1, 'WITHSCORES')
  for i = 1, #seen, 2 do
    local entry = redis.call('HGET', key('fleet'), seen[i])
    if entry then rows[#rows + 1] = {seen[i], entry, now - seen[i + 1], jobs[seen[i]] or {}} end
  end
  return {rows, redis.call('SMEMBERS', key('draining'))}
end

function operation.drain(host, undo)
  return redis.call(undo == '1' and 'SREM' or 'SADD', key('draining'), host)
end

-- {{queue, {{waiting jobs, ms since the first was submitted} of each priority}, running jobs, ready workers,
-- pace: gpu, whole} of each queue, jobs that finished within the last hour}.
function operation.queues(retention)
  local running, rows = {}, {}
  for _, id in ipairs(redis.call('ZRANGE', key('running'), 0, -1)) do
    local queue = redis.pcall('HGET', key('job', id), 'queue')
    if type(queue) == 'string' then running[queue] = (running[queue] or 0) + 1 end
  end
  for _, queue in ipairs(redis.call('SMEMBERS', key('queues'))) do
    local bands = {}
    for band = 0, 2 do
      local waiting = key('waiting', queue, band)
      local first = redis.call('ZRANGE', waiting, 0, 0)[1]
      local submitted = first and redis.pcall('HGET', key('job', id_of(first)), 'submitted')
      submitted = type(submitted) == 'string' and tonumber(submitted) or now
      bands[#bands + 1] = {redis.call('ZCARD', waiting), now - submitted}
    end
    local alive = redis.call('ZCOUNT', key('workers', queue), now - ALIVE, '+inf')
    local gpu, whole = unpack(redis.call('HMGET', key('pace', queue), 'gpu', 'whole'))
    rows[#rows + 1] = {queue, bands, running[queue] or 0, alive, gpu or '', whole or ''}
  end
  local hour = redis.call('ZCOUNT', key('expiry'), now + retention - 3600000, '+inf')
  return {rows, hour}
end

-- Whether the caller may look for objects without a job. Nobody else may within `every` ms.
function operation.may_clean(every)
  return redis.call('SET', key('cleaned'), now, 'NX', 'PX', every) and 1 or 0
end

-- {queue, ready workers, JSON of its model's limits or ''} of each queue that had a worker within a week.
function operation.served()
  local rows = {}
  for _, queue in ipairs(redis.call('SMEMBERS', key('queues'))) do
    if redis.call('ZCOUNT', key('workers', queue), now - REMEMBERED, '+inf') > 0 then
      local ready = redis.call('ZCOUNT', key('workers', queue), now - ALIVE, '+inf')
      rows[#rows + 1] = {queue, ready, redis.call('HGET', key('limits'), queue) or ''}
    end
  end
  return rows
end
