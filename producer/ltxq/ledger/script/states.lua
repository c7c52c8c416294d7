-- The changes of state, each with every index that depends on it.

-- The objects of a job's claims become garbage, except those of the claim `kept`, which made its result.
local function discard_claims(id, kept)
  for nonce in string.gmatch(redis.call('HGET', key('job', id), 'claims') or '', '%S+') do
    if nonce ~= kept then
      redis.call('ZADD', key('garbage'), now, id .. '/' .. nonce)
      redis.call('ZREMRANGEBYRANK', key('garbage'), 0, -GARBAGE - 1)
    end
  end
  set(id, 'claims', kept)
end

-- No worker holds the job any more.
local function let_go(id)
  redis.call('ZREM', key('running'), id)
  local worker = redis.call('HGET', key('job', id), 'worker')
  if worker then redis.call('SREM', key('held', worker), id) end
end

-- The job neither waits nor runs any more.
local function leave_queue(id)
  local queue, band, seq, not_before, start_by = unpack(get(id, 'queue', 'band', 'seq', 'not_before', 'start_by'))
  redis.call('ZREM', key('waiting', queue, band), as_waiting(id, seq))
  if not_before then redis.call('ZREM', key('later', queue), id) end
  if start_by then redis.call('ZREM', key('deadlines'), id) end
  let_go(id)
end

-- A job reaches its final state. `field` is 'result' or 'error', `value` its JSON.
local function close(id, from, to, field, value, retention)
  leave_queue(id)
  move(id, from, to)
  if to == 'succeeded' then note_pace(id, 'whole') end
  discard_claims(id, to == 'succeeded' and redis.call('HGET', key('job', id), 'nonce') or '')
  local code = to == 'failed' and string.match(value, '"code":"([a-z_]+)"') or ''
  count(id, code == '' and to or to .. ':' .. code)
  set(id, field, value, 'finished', now)
  redis.call('HDEL', key('job', id), 'progress', 'gpu')
  redis.call('ZADD', key('expiry'), now + retention, id)
  redis.call('ZADD', key('unreported'), now, id)
  local receiver = receiver_of(id)
  if receiver then
    set(id, 'webhook', 'pending', 'receiver', receiver)
    settle_webhook(id, receiver, now)
  end
  changed(id)
end

local function virtual_time(queue)
  local time = tonumber(redis.call('GET', key('vtime', queue)) or '')
  return time and time > 0 and time < 2 ^ 53 and time or 0  -- 'nan' is a number to Lua
end

-- Sends a Celery message (protocol 2, in kombu's envelope). It wakes a worker, which claims the job that is
-- first by then. Its task id, which Celery and Flower show, is the id of the job that it was sent for.
local function send_wakeup(id, queue)
  redis.call('LPUSH', queue, cjson.encode({
    body = cjson.encode({{id}, {}, {}}),
    ['content-type'] = 'application/json',
    ['content-encoding'] = 'utf-8',
    headers = {task = TASK, id = id},
    properties = {
      delivery_tag = id .. '.' .. now,
      delivery_info = {exchange = '', routing_key = queue},
    },
  }))
end

-- How many more jobs wait than messages. A plain Celery producer's message counts too.
local function missing_wakeups(queue)
  local waiting = 0
  for band = 0, 2 do waiting = waiting + redis.call('ZCARD', key('waiting', queue, band)) end
  return waiting - redis.call('LLEN', queue)
end

-- Called when a job has begun to wait. It sends no message where enough are left of cancelled jobs, and two
-- where a plain producer's message was counted for another job and has been taken since.
local function wake(id, queue)
  for _ = 1, math.min(missing_wakeups(queue), 2) do send_wakeup(id, queue) end
end

-- A job begins to wait. Owners share by start-time fair queueing: the job's tag is the end of its owner's
-- last job in virtual time, or the queue's virtual time if that is later. So an owner who had no jobs is
-- next, and an owner with a thousand jobs delays nobody's first. `cost` is the work divided by the weight.
local function join_queue(id, seq, queue, band, cost, owner)
  local tags = key('tags', queue)
  local tag = math.max(virtual_time(queue), tonumber(redis.call('ZSCORE', tags, owner) or 0))
  redis.call('ZADD', tags, tag + cost, owner)
  redis.call('ZADD', key('waiting', queue, band), tag, as_waiting(id, seq))
  set(id, 'tag', string.format('%.17g', tag))
  wake(id, queue)
end

-- Forgets an owner without jobs.
local function forget_owner(owner)
  for _, state in ipairs(STATES) do
    if redis.call('EXISTS', key('owned', owner, state)) == 1 then return end
  end
  redis.call('SREM', key('owners'), owner)
end

-- Takes a job out of everything that clients see.
local function hide(id)
  local state, owner, idempotency, receiver = unpack(get(id, 'state', 'owner', 'idempotency', 'receiver'))
  local used = idempotency and (owner or '') .. ':' .. idempotency
  if used and redis.call('HGET', key('idempotency'), used) == id then redis.call('HDEL', key('idempotency'), used) end
  for _, index in ipairs(indexes(owner, state or '')) do redis.call('ZREM', index, id) end
  if owner then forget_owner(owner) end
  if receiver then settle_webhook(id, receiver, nil) end
end

-- Removes a record; its objects become garbage.
local function remove(id)
  if is_record(id) then
    discard_claims(id, '')
    hide(id)
  end
  redis.call('ZREM', key('expiry'), id)
  redis.call('ZREM', key('unreported'), id)
  redis.call('DEL', key('job', id))
  changed(id)
end

-- Takes a job from a worker that no longer works on it. `charged`: the job held the GPU when the worker was
-- lost, so the loss counts against it. The job gets the error `failure` if it was lost too often, and
-- `cancelled` if a client had asked to cancel it.
local function give_back(id, charged, max_lost, retention, failure, cancelled, reason)
  local lost, cancel = unpack(get(id, 'lost', 'cancel'))
  if is_withdrawn(id) then
    leave_queue(id)
    remove(id)
    return {id, 'lost'}
  end
  let_go(id)
  lost = tonumber(lost or 0)
  if charged then
    lost = lost + 1
    set(id, 'lost', lost)
  end
  if cancel then
    close(id, 'running', 'cancelled', 'error', cancelled, retention)
    return {id, 'cancelled'}
  elseif charged and lost >= max_lost then
    close(id, 'running', 'failed', 'error', failure, retention)
    return {id, 'failed'}
  end
  count(id, reason or charged and 'lost' or 'given_back')
  move(id, 'running', 'queued')
  redis.call('HDEL', key('job', id), 'progress', 'gpu')
  -- Its old tag makes it the first of its priority.
  local queue, band, tag, seq = unpack(get(id, 'queue', 'band', 'tag', 'seq'))
  redis.call('ZADD', key('waiting', queue, checked_band(band)), tag, as_waiting(id, seq))
  redis.call('SADD', key('queues'), queue)  -- it may have been forgotten while no job waited
  wake(id, queue)
  changed(id)
  return {id, 'queued'}
end
