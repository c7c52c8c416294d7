-- What those who make them do. Each claim has a random nonce, which every write of the worker carries: one
-- with another claim's nonce is refused. (A count would begin again with a record that begins again: one
-- that was deleted and sent again, or fell behind in a failover.)

local function claim(id, queue, nonce, worker, lease)
  local state, own, now_lane, last_nonce, claims, not_before, start_by, attempts = unpack(
    get(id, 'state', 'queue', 'lane', 'nonce', 'claims', 'not_before', 'start_by', 'attempts'))
  if not state then return {'refused', 'gone'} end
  if not (state == 'running' and last_nonce == nonce) then
    if state ~= 'queued' or own ~= queue then return {'refused', state} end
    if not_before then return {'refused', 'later'} end
    if start_by and not attempts then
      if tonumber(start_by) < now then return {'refused', 'late'} end  -- the sweep ends it
      redis.call('ZREM', key('deadlines'), id)
    end
    redis.call('ZREM', key('waiting', queue, now_lane), id)
    redis.call('ZADD', key('running'), now + lease, id)
    move(id, 'queued', 'running')
    set(id, 'nonce', nonce, 'claims', nonce .. ' ' .. string.sub(claims or '', 1, CLAIMS), 'worker', worker,
        'started', now, 'gpu', 1)
    redis.call('HINCRBY', key('job', id), 'attempts', 1)
    count(id, 'claimed')
    changed(id)
  end
  local request, submitted, started, attempt = unpack(get(id, 'request', 'submitted', 'started', 'attempts'))
  return {'claimed', tonumber(attempt), request, started - submitted}
end

function operation.claim(id, queue, lane, stamp, nonce, worker, lease, retention)
  -- Lanes are emptied in order, so a message taken from this one proves that it and every more
  -- urgent one hold none stamped earlier.
  stamp = tonumber(stamp)
  local latest = tonumber(redis.call('GET', key('counter')) or 0) or 0  -- a later one is forged
  for l = 0, checked_lane(lane) do
    local mark = redis.call('HGET', key('watermark', queue), l)
    if stamp > (tonumber(mark or 0) or 0) and stamp <= latest then redis.call('HSET', key('watermark', queue), l, stamp) end
  end
  return guarded(retention, claim, id, queue, nonce, worker, lease) or {'refused', 'damaged'}
end

-- Whether a claim still stands: 'held', 'cancel' (held, and asked to stop) or 'lost'.
local function standing(id, nonce)
  local state, current, cancel = unpack(get(id, 'state', 'nonce', 'cancel'))
  if state ~= 'running' or current ~= nonce then return 'lost' end
  return cancel and 'cancel' or 'held'
end

-- ms since another supervisor said that the worker's name is its own; nil where none did within a lease,
-- or the one that did is `instance`. While nobody sweeps, Redis was away: then no name is free.
local function silence_of_holder(worker, instance, lease)
  local holder, at = string.match(redis.call('HGET', key('holders'), worker) or '', '^(%S+) (%d+)$')
  if not holder or holder == instance then return nil end
  local silence, swept = math.max(0, now - at), redis.pcall('GET', key('swept'))
  swept = type(swept) == 'string' and tonumber(swept) or now
  return (silence <= lease or now - swept > OUTAGE) and silence or nil
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
  local state, holder, queue, lane, stamp = unpack(get(id, 'state', 'nonce', 'queue', 'lane', 'stamp'))
  if not state or holder ~= nonce then return {id, 'lost'} end
  if state == 'queued' then return {id, 'queued', queue, tonumber(lane), tonumber(stamp)} end
  if state ~= 'running' then return {id, state} end
  return give_back(id, charged == '1', tonumber(max_lost), retention, failure, cancelled)
end

-- `instance`: of the supervisor that asks. It has a say only while the name is its own.
function operation.give_back_all(worker, instance, lease, max_lost, retention, failure, cancelled)
  local function give_back_own(id)
    local holder, gpu = unpack(get(id, 'worker', 'gpu'))
    if holder ~= worker then return nil end
    return give_back(id, gpu == '1', tonumber(max_lost), retention, failure, cancelled)
  end
  local given = {}
  if silence_of_holder(worker, instance, tonumber(lease)) then return given end
  for _, id in ipairs(redis.call('ZRANGE', key('running'), 0, -1)) do
    given[#given + 1] = guarded(retention, give_back_own, id)
  end
  return given
end

function operation.held(worker)
  local held = {}
  for _, id in ipairs(redis.call('ZRANGE', key('running'), 0, -1)) do
    -- A damaged record is passed over: its lease ends, and the sweep deals with it.
    local readable, row = pcall(function()
      local holder, attempts, gpu, started, request = unpack(get(id, 'worker', 'attempts', 'gpu', 'started', 'request'))
      if holder ~= worker then return nil end
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
