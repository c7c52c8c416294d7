-- What those who make them do. A write carries the claim's token; with an older one it is refused.

local function claim(id, queue, nonce, worker, lease)
  local state, own, now_lane, token, last_nonce = unpack(get(id, 'state', 'queue', 'lane', 'token', 'nonce'))
  if not state then return {'refused', 'gone'} end
  if not (state == 'running' and last_nonce == nonce) then
    if state ~= 'queued' or own ~= queue then return {'refused', state} end
    token = tonumber(token or 0) + 1
    redis.call('ZREM', key('waiting', queue, now_lane), id)
    redis.call('ZADD', key('running'), now + lease, id)
    move(id, 'queued', 'running')
    set(id, 'token', token, 'nonce', nonce, 'worker', worker, 'started', now, 'gpu', 1)
    count(id, 'claimed')
    changed(id)
  end
  local request, submitted, started = unpack(get(id, 'request', 'submitted', 'started'))
  return {'claimed', tonumber(token), request, started - submitted}
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
local function standing(id, token)
  local state, current, cancel = unpack(get(id, 'state', 'token', 'cancel'))
  if state ~= 'running' or current ~= token then return 'lost' end
  return cancel and 'cancel' or 'held'
end

function operation.renew(id, token, lease)
  local answer = standing(id, token)
  if answer ~= 'lost' then redis.call('ZADD', key('running'), 'GT', now + lease, id) end
  return answer
end

function operation.report(id, token, progress, gpu)
  local answer = standing(id, token)
  if answer ~= 'lost' then
    if gpu == '0' and redis.call('HGET', key('job', id), 'gpu') == '1' then note_pace(id, 'gpu') end
    set(id, 'progress', progress, 'gpu', gpu)
    changed(id)
  end
  return answer
end

local function finish(id, token, state, field, value, retention)
  local current, holder = unpack(get(id, 'state', 'token'))
  if not current then return {'refused', 'gone'} end
  if holder ~= token then return {'refused', current} end
  if current == 'running' then
    close(id, 'running', state, field, value, retention)
  elseif current ~= state then
    return {'refused', current}
  end
  return {'finished', state}
end

function operation.finish(id, token, state, field, value, retention)
  return guarded(retention, finish, id, token, state, field, value, retention) or {'refused', 'damaged'}
end

function operation.give_back(id, token, charged, max_lost, retention, failure, cancelled)
  local state, holder, queue, lane, stamp = unpack(get(id, 'state', 'token', 'queue', 'lane', 'stamp'))
  if not state or holder ~= token then return {id, 'lost'} end
  if state == 'queued' then return {id, 'queued', queue, tonumber(lane), tonumber(stamp)} end
  if state ~= 'running' then return {id, state} end
  return give_back(id, charged == '1', tonumber(max_lost), retention, failure, cancelled)
end

function operation.give_back_all(worker, max_lost, retention, failure, cancelled)
  local function give_back_own(id)
    local holder, gpu = unpack(get(id, 'worker', 'gpu'))
    if holder ~= worker then return nil end
    return give_back(id, gpu == '1', tonumber(max_lost), retention, failure, cancelled)
  end
  local given = {}
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
      local holder, token, gpu, started, request = unpack(get(id, 'worker', 'token', 'gpu', 'started', 'request'))
      if holder ~= worker then return nil end
      return {id, tonumber(token) + 0, tonumber(gpu) + 0, now - started, request}
    end)
    if readable then held[#held + 1] = row end
  end
  return held
end

function operation.reported(id)
  redis.call('ZREM', key('unreported'), id)
  return 'ok'
end
