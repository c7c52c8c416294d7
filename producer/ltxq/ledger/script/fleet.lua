-- Who works, and what waits.

-- A supervisor, an `instance` of its own, tells of its workers: name, state, and the instance that had
-- the name and is known to be gone, for each. Answers whether it is to drain; or, where another
-- instance holds a name, which and for how many ms that has been silent, and then nothing is noted.
function operation.heartbeat(queue, host, instance, lease, ...)
  local told = {...}
  for i = 1, #told, 3 do
    local silence = silence_of_holder(told[i], instance, tonumber(lease))
    local holder = string.match(redis.call('HGET', key('holders'), told[i]) or '', '^%S+')
    if silence and holder ~= told[i + 2] then return {'taken', told[i], silence} end
  end
  redis.call('SADD', key('queues'), queue)
  redis.call('ZREMRANGEBYSCORE', key('workers', queue), '-inf', now - REMEMBERED)
  for i = 1, #told, 3 do
    redis.call('HSET', key('holders'), told[i], instance .. ' ' .. now)
    redis.call('HSET', key('fleet'), told[i], cjson.encode({queue, host, told[i + 1]}))
    redis.call('ZADD', key('seen'), now, told[i])
    if told[i + 1] == 'ready' then redis.call('ZADD', key('workers', queue), now, told[i]) end
  end
  return {'noted', redis.call('SISMEMBER', key('draining'), host)}
end

-- A supervisor ends: its workers' names are free.
function operation.leave(instance, ...)
  for _, worker in ipairs({...}) do
    local holder = string.match(redis.call('HGET', key('holders'), worker) or '', '^%S+')
    if holder == instance then redis.call('HDEL', key('holders'), worker) end
  end
  return 'left'
end

-- Every worker lately told of: name, JSON of queue, host and state, ms since then, its jobs.
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
    local told = redis.call('HGET', key('fleet'), seen[i])
    if told then rows[#rows + 1] = {seen[i], told, now - seen[i + 1], jobs[seen[i]] or {}} end
  end
  return {rows, redis.call('SMEMBERS', key('draining'))}
end

function operation.drain(host, undo)
  return redis.call(undo == '1' and 'SREM' or 'SADD', key('draining'), host)
end

-- Of every queue: how many of each priority wait and since when the first of them has, how many run,
-- how many workers are ready, and the pace. `hour` is the expiry of what finished an hour ago.
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

-- Whether the caller is the one to look for objects without a job, which nobody does again for `every` ms.
function operation.may_clean(every)
  return redis.call('SET', key('cleaned'), now, 'NX', 'PX', every) and 1 or 0
end

-- Queues that had a worker lately, and how many each has now.
function operation.served()
  local rows = {}
  for _, queue in ipairs(redis.call('SMEMBERS', key('queues'))) do
    if redis.call('ZCOUNT', key('workers', queue), now - REMEMBERED, '+inf') > 0 then
      rows[#rows + 1] = {queue, redis.call('ZCOUNT', key('workers', queue), now - ALIVE, '+inf')}
    end
  end
  return rows
end
