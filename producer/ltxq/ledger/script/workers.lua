-- The operations of workers, and of supervisors for workers that died. Each claim has a random nonce, and
-- every write of the worker carries it; a write with another claim's nonce is refused. (A counter in the
-- record would repeat itself after the record was deleted and sent again, or after a failover.)

-- Claims one job; nil if it cannot be claimed.
local function claim(id, queue, nonce, worker, lease, retention, late)
  local state, own, tag, claims, start_by, attempts = unpack(
    get(id, 'state', 'queue', 'tag', 'claims', 'start_by', 'attempts'))
  if state ~= 'queued' or own ~= queue then return nil end
  if start_by and not attempts then
    if tonumber(start_by) <= now then
      close(id, 'queued', 'cancelled', 'error', late, retention)
      return nil
    end
    redis.call('ZREM', key('deadlines'), id)
  end
  if tonumber(tag) > virtual_time(queue) then
    redis.call('SET', key('vtime', queue), tag)
    redis.call('ZREMRANGEBYSCORE', key('tags', queue), '-inf', tag)
  end
  redis.call('ZADD', key('running'), now + lease, id)
  redis.call('SADD', key('held', worker), id)
  move(id, 'queued', 'running')
  set(id, 'nonce', nonce, 'claims', nonce .. ' ' .. string.sub(claims or '', 1, CLAIMS), 'worker', worker,
      'started', now, 'gpu', 1)
  redis.call('HINCRBY', key('job', id), 'attempts', 1)
  count(id, 'claimed')
  changed(id)
  return id
end

local function claimed(id)
  local attempt, request, submitted, started = unpack(get(id, 'attempts', 'request', 'submitted', 'started'))
  return {'claimed', id, tonumber(attempt), request, started - (tonumber(submitted) or started)}
end

-- Claims the first job of the most urgent priority. A worker makes one claim after the other, so the claim
-- whose answer it lost is its last.
function operation.claim(queue, nonce, worker, lease, retention, late)
  local last_nonce, last = string.match(redis.call('HGET', key('claimed'), worker) or '', '^(%S+) (%S+)$')
  if last_nonce == nonce then
    local state, holder
    if is_record(last) then state, holder = unpack(get(last, 'state', 'nonce')) end
    return state == 'running' and holder == nonce and claimed(last) or {'none'}
  end
  for band = 0, 2 do
    for _ = 1, PAGE do  -- passes over damaged and late jobs; the next call goes on
      local first = redis.call('ZRANGE', key('waiting', queue, band), 0, 0)[1]
      if not first then break end
      local id = id_of(first)
      local taken = guarded(retention, claim, id, queue, nonce, worker, lease, retention, late)
      redis.call('ZREM', key('waiting', queue, band), first)
      if taken then
        redis.call('HSET', key('claimed'), worker, nonce .. ' ' .. id)
        return claimed(id)
      end
    end
  end
  return {'none'}
end

-- Whether a claim still stands: 'held', 'cancel' (held, and a client asks to stop) or 'lost'.
local function standing(id, nonce)
  local state, current, cancel = unpack(get(id, 'state', 'nonce', 'cancel'))
  if state ~= 'running' or current ~= nonce then return 'lost' end
  return cancel and 'cancel' or 'held'
end

-- The ms since the last heartbeat of another supervisor instance that holds the worker's name; nil if the name
-- is free or held by `instance`. A name is free when its holder has been silent for a lease; but not while
-- no supervisor sweeps, nor for a lease after that: Redis was away, and no heartbeat could arrive.
local function silence_of_holder(worker, instance, lease)
  local holder, at = string.match(redis.call('HGET', key('holders'), worker) or '', '^(%S+) (%d+)$')
  if not holder or holder == instance then return nil end
  local silence, times = math.max(0, now - at), redis.call('MGET', key('swept'), key('outage'))
  local swept, outage = tonumber(times[1] or '') or now, tonumber(times[2] or '') or 0
  local held = silence <= lease or now - swept > OUTAGE or now - outage <= lease
  return held and silence or nil
end

function operation.renew(id, nonce, lease)
  local answer = standing(id, nonce)
  if answer ~= 'lost' then redis.call('ZADD', key('running'), 'GT', now + lease, id) end
  return answer
end

function operation.report(id, nonce, progress, gpu)
  local answer = standing(id, nonce)
  if answer ~= 'lost' then
    if gpu == '0' and redis.call('HGET', key('job', id), 'gpu') == '1' then note_pace(id, 'gpu') end
    set(id, 'progress', progress, 'gpu', gpu)
    changed(id)
  end
  return answer
end

local function finish(id, nonce, state, field, value, retention)
  local current, holder = unpack(get(id, 'state', 'nonce'))
  if not current then return {'refused', 'gone'} end
  if holder ~= nonce then return {'refused', current} end
  if is_withdrawn(id) then
    leave_queue(id)
    remove(id)
    return {'refused', 'gone'}
  end
  if current == 'running' then
    close(id, 'running', state, field, value, retention)
  elseif current ~= state then
    return {'refused', current}
  end
  return {'finished', state}
end

function operation.finish(id, nonce, state, field, value, retention)
  return guarded(retention, finish, id, nonce, state, field, value, retention) or {'refused', 'damaged'}
end

function operation.give_back(id, nonce, charged, max_lost, retention, failure, cancelled)
  local state, holder = unpack(get(id, 'state', 'nonce'))
  if not state or holder ~= nonce then return {id, 'lost'} end
  if state ~= 'running' then return {id, state} end
  return give_back(id, charged == '1', tonumber(max_lost), retention, failure, cancelled)
end

-- Puts the message that a worker had taken when it ended back into the queue. It may be the job of a plain
-- Celery producer, of which the ledger has no record yet.
local function put_back(worker)
  local readable, entry = pcall(cjson.decode, redis.call('HGET', key('fleet'), worker) or '')
  local queue = readable and type(entry) == 'table' and entry[1]
  if type(queue) ~= 'string' then return end
  for _ = 1, PAGE do
    local message = redis.pcall('LMOVE', key('taken', worker), queue, 'LEFT', 'RIGHT')
    if not message or message.err then break end
  end
end

-- `instance`: the calling supervisor's. Nothing happens if another one holds the worker's name.
function operation.give_back_all(worker, instance, lease, max_lost, retention, failure, cancelled)
  local function give_back_own(id)
    local state, holder, gpu = unpack(get(id, 'state', 'worker', 'gpu'))
    if state ~= 'running' or holder ~= worker then return nil end
    return give_back(id, gpu == '1', tonumber(max_lost), retention, failure, cancelled)
  end
  local given = {}
  if silence_of_holder(worker, instance, tonumber(lease)) then return given end
  put_back(worker)
  for _, id in ipairs(redis.call('SMEMBERS', key('held', worker))) do
    given[#given + 1] = guarded(retention, give_back_own, id)
    redis.call('SREM', key('held', worker), id)
  end
  return given
end

function operation.running_on(worker)
  local held = {}
  for _, id in ipairs(redis.call('SMEMBERS', key('held', worker))) do
    -- A damaged record is left out: its lease ends, and the sweep deals with it.
    local readable, row = pcall(function()
      local state, holder, attempts, gpu, started, request = unpack(
        get(id, 'state', 'worker', 'attempts', 'gpu', 'started', 'request'))
      if state ~= 'running' or holder ~= worker then
        redis.call('SREM', key('held', worker), id)
        return nil
      end
      return {id, tonumber(attempts) + 0, tonumber(gpu) + 0, now - started, request}
    end)
    if readable then held[#held + 1] = row end
  end
  return held
end

function operation.reported(id)
  redis.call('ZREM', key('unreported'), id)
  return 'ok'
end
