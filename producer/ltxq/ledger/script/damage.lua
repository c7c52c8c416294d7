-- A record or an index that was written over by hand must not stop other jobs.

local DAMAGED = '{"code":"internal","message":"The job\'s record in Redis is damaged.",' ..
  '"hint":"Submit it again, and delete this one.","retryable":false}'

-- Takes a job out of every index.
local function forget(id)
  local owner, seq
  if is_record(id) then owner, seq = unpack(get(id, 'owner', 'seq')) end
  local owners = owner and {owner} or redis.call('SRANDMEMBER', key('owners'), OWNERS)
  for _, state in ipairs(STATES) do
    redis.call('ZREM', key('state', state), id)
    for _, owner in ipairs(owners) do
      redis.call('ZREM', key('owned', owner, state), id)
    end
  end
  for _, queue in ipairs(redis.call('SMEMBERS', key('queues'))) do
    if tonumber(seq) then  -- without one, the claim that reaches it removes it
      for band = 0, 2 do redis.call('ZREM', key('waiting', queue, band), as_waiting(id, seq)) end
    end
    redis.call('ZREM', key('later', queue), id)
  end
  for _, index in ipairs({'running', 'deadlines', 'expiry', 'unreported'}) do redis.call('ZREM', key(index), id) end
end

-- Fails a job whose record is damaged, so that no operation meets it again.
local function quarantine(id, retention)
  forget(id)
  if is_withdrawn(id) then redis.call('DEL', key('job', id)) end
  if is_record(id) then
    local seq = tonumber(redis.call('HGET', key('job', id), 'seq') or 0) or 0
    if seq ~= seq then seq = 0 end  -- 'nan' is a number to Lua, and none to Redis
    redis.call('HDEL', key('job', id), 'progress', 'gpu', 'result')
    set(id, 'state', 'failed', 'error', DAMAGED, 'finished', now)
    count(id, 'failed:internal')
    for _, index in ipairs(indexes(redis.call('HGET', key('job', id), 'owner'), 'failed')) do
      redis.call('ZADD', index, seq, id)
    end
    redis.call('ZADD', key('expiry'), now + retention, id)
    redis.call('ZADD', key('unreported'), now, id)
    changed(id)
  end
end

-- Deletes each index that has the wrong Redis type; a supervisor then builds it anew from the records. Answers
-- whether there was one. `owners`, `queues`: whose indexes to check; queues nil: all.
local function repair_indexes(owners, queues)
  local found = false
  local function expect(kind, name)
    local is = redis.call('TYPE', name).ok
    if is ~= kind and is ~= 'none' then
      redis.call('DEL', name)
      found = true
    end
  end
  for _, name in ipairs({'running', 'deadlines', 'expiry', 'garbage', 'undeleted', 'unreported', 'webhooks', 'seen'}) do expect('zset', key(name)) end
  for _, name in ipairs({'owners', 'queues', 'draining'}) do expect('set', key(name)) end
  for _, name in ipairs({'idempotency', 'fleet', 'holders', 'limits', 'claimed'}) do expect('hash', key(name)) end
  for _, state in ipairs(STATES) do
    expect('zset', key('state', state))
    for _, owner in ipairs(owners) do expect('zset', key('owned', owner, state)) end
  end
  for _, receiver in ipairs(redis.call('ZRANGE', key('webhooks'), 0, PAGE)) do
    for _, name in ipairs({'webhooks', 'sending'}) do expect('zset', key(name, receiver)) end
  end
  local workers = queues and redis.call('ZRANDMEMBER', key('seen'), PAGE) or redis.call('ZRANGE', key('seen'), 0, OWNERS)
  for _, worker in ipairs(workers) do
    expect('set', key('held', worker))
    expect('list', key('taken', worker))
  end
  for _, queue in ipairs(queues or redis.call('SMEMBERS', key('queues'))) do
    for _, name in ipairs({'pace', 'totals'}) do expect('hash', key(name, queue)) end
    for _, name in ipairs({'workers', 'later', 'tags'}) do expect('zset', key(name, queue)) end
    for band = 0, 2 do expect('zset', key('waiting', queue, band)) end
    for _, name in ipairs({'vtime', 'missing'}) do expect('string', key(name, queue)) end
    expect('list', queue)  -- Celery's
  end
  if found then redis.call('SET', key('corrupt'), 1) end
  return found
end

-- Puts a job into the indexes that its record names.
local function index(id, lease, retention)
  local state, seq, owner, queue, band, tag = unpack(get(id, 'state', 'seq', 'owner', 'queue', 'band', 'tag'))
  local idempotency, finished, webhook, receiver = unpack(get(id, 'idempotency', 'finished', 'webhook', 'receiver'))
  local not_before, start_by, attempts, worker = unpack(get(id, 'not_before', 'start_by', 'attempts', 'worker'))
  if is_withdrawn(id) then
    redis.call('ZADD', key('running'), 'NX', now + lease, id)
    redis.call('SADD', key('held', worker), id)
    return
  end
  for _, name in ipairs(indexes(owner, state)) do redis.call('ZADD', name, seq, id) end
  redis.call('SADD', key('queues'), queue)
  if owner then redis.call('SADD', key('owners'), owner) end
  if idempotency then redis.call('HSET', key('idempotency'), (owner or '') .. ':' .. idempotency, id) end
  if state == 'queued' then
    if start_by and not attempts then redis.call('ZADD', key('deadlines'), start_by, id) end
    if not_before then
      redis.call('ZADD', key('later', queue), not_before, id)
    else
      redis.call('ZADD', key('waiting', queue, checked_band(band)), tag, as_waiting(id, seq))
    end
  elseif state == 'running' then
    redis.call('ZADD', key('running'), 'NX', now + lease, id)
    redis.call('SADD', key('held', worker), id)
  else
    redis.call('ZADD', key('expiry'), 'NX', finished + retention, id)
    redis.call('ZADD', key('unreported'), 'NX', now, id)
    if webhook == 'pending' then
      redis.call('ZADD', key('webhooks', receiver), 'NX', now, id)
      schedule(receiver)
    end
  end
end

-- Runs `step(id, …)`; if the job's record is damaged, quarantines the job and answers nil. A write that Redis
-- refuses (it is full, or a replica) is still an error.
local function guarded(retention, step, id, ...)
  local went_well, answer = pcall(step, id, ...)
  if went_well then return answer end
  local text = type(answer) == 'table' and answer.err or answer
  if string.find(text, 'WRONGTYPE', 1, true) and is_record(id) then error(answer) end  -- an index
  for _, sign in ipairs({'attempt to', 'number expected', 'not an integer', 'WRONGTYPE', 'not a valid', 'concat', 'must be strings'}) do
    if string.find(text, sign, 1, true) then
      quarantine(id, retention)
      return nil
    end
  end
  error(answer)
end

function operation.index(lease, retention, ...)
  for _, id in ipairs({...}) do
    if is_record(id) then guarded(retention, index, id, lease, retention) end
  end
  return 'ok'
end
