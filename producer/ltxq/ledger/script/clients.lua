-- The operations of clients.

-- `resent`: '1' if the client lost the answer to the same submission: the last job of this request is the one
-- that it submitted, if that arrived. '0' if the client may ask so later; '' if it will not.
function operation.submit(id, contract, request, digest, queue, band, cost, owner, retry_of, idempotency, resent, max_queued, max_owned,
                          not_before, start_within, channel, event)
  if is_withdrawn(id) then  -- sent again while a worker still has the deleted job, which then loses its claim
    leave_queue(id)
    remove(id)
  end
  local submitted = redis.call('HGET', key('job', id), 'submitted')
  if submitted then return {'accepted', submitted, queue_position(id)} end
  if idempotency ~= '' then
    local other = redis.call('HGET', key('idempotency'), owner .. ':' .. idempotency)
    -- A client without a key of its caller's sends the job's id, which needs no index.
    if not other and redis.pcall('HGET', key('job', idempotency), 'owner') == (owner ~= '' and owner) then
      other = idempotency
    end
    if other and exists(other) then
      local same = redis.call('HGET', key('job', other), 'digest') == digest
      return {same and 'repeated' or 'conflict', other}
    end
  end
  if resent == '1' then
    local other = redis.pcall('GET', key('recent', owner, digest))
    if type(other) == 'string' and exists(other) then return {'repeated', other} end
  end
  local queued = redis.call('ZCARD', key('state', 'queued'))
  if queued >= tonumber(max_queued) then return {'full', queued, ''} end
  if redis.call('SISMEMBER', key('queues'), queue) == 0 and redis.call('SCARD', key('queues')) >= QUEUES then
    return {'full', QUEUES, '', queue}
  end
  local owned = owner ~= '' and redis.call('ZCARD', key('owned', owner, 'queued')) or 0
  if owned >= tonumber(max_owned) then return {'full', owned, owner} end

  local seq = next_seq()
  set(id, 'contract', contract, 'state', 'queued', 'request', request, 'queue', queue,
      'band', band, 'cost', cost, 'seq', seq, 'submitted', now)
  if owner ~= '' then
    set(id, 'owner', owner)
    redis.call('SADD', key('owners'), owner)
  end
  if resent ~= '' then redis.call('SET', key('recent', owner, digest), id, 'EX', RECENT) end
  if retry_of ~= '' then set(id, 'retry_of', retry_of) end
  if idempotency ~= '' then
    set(id, 'digest', digest)
    if idempotency ~= id then
      set(id, 'idempotency', idempotency)
      redis.call('HSET', key('idempotency'), owner .. ':' .. idempotency, id)
    end
  end
  for _, index in ipairs(indexes(owner, 'queued')) do redis.call('ZADD', index, seq, id) end
  redis.call('SADD', key('queues'), queue)
  count(id, 'submitted')
  if start_within ~= '' then
    set(id, 'start_by', now + start_within)
    redis.call('ZADD', key('deadlines'), now + start_within, id)
  end
  if not_before ~= '' and tonumber(not_before) > now then
    set(id, 'not_before', not_before)
    redis.call('ZADD', key('later', queue), not_before, id)
  else
    join_queue(id, seq, queue, band, cost, owner)
  end
  if channel ~= '' then redis.pcall('PUBLISH', channel, event) end
  return {'accepted', now, queue_position(id)}
end

-- The record of each job, and its place in the queue. Empty where there is none, 'damaged' where it is no hash.
function operation.read(...)
  local rows = {}
  for _, id in ipairs({...}) do
    local record = is_withdrawn(id) and {} or redis.pcall('HGETALL', key('job', id))
    if record.err then
      rows[#rows + 1] = {'damaged'}
    else
      rows[#rows + 1] = {record, queue_position(id)}
    end
  end
  return {now, rows}
end

local function ask_to_stop(id)
  set(id, 'cancel', 1)
  redis.call('PUBLISH', key('cancel', redis.call('HGET', key('job', id), 'worker')), id)
end

local function cancel(id, retention, cancelled)
  local state = redis.call('HGET', key('job', id), 'state')
  if not state or is_withdrawn(id) then return 'gone' end
  if state == 'queued' then
    close(id, 'queued', 'cancelled', 'error', cancelled, retention)
    return 'cancelled'
  elseif state == 'running' then
    ask_to_stop(id)
    changed(id)
  end
  return state
end

function operation.cancel(id, retention, cancelled)
  return guarded(retention, cancel, id, retention, cancelled) or (is_record(id) and 'failed' or 'gone')
end

-- An unfinished job is withdrawn: it leaves the queue, or its worker is asked to stop. It has no outcome.
local function withdraw(id, state)
  if state == 'running' then
    ask_to_stop(id)
    hide(id)
    set(id, 'withdrawn', 1)
    changed(id)
    count(id, 'cancelled')
  else
    leave_queue(id)
    count(id, 'cancelled')
    remove(id)
  end
end

function operation.delete(id, nonce)
  if not exists(id) then
    local earlier = redis.pcall('GET', key('deleted', id))
    local by, had = string.match(type(earlier) == 'string' and earlier or '', '^(%S+) (%S*)$')
    return by == nonce and {'deleted', '', had} or {'gone'}
  end
  local state, claims
  if is_record(id) then state, claims = unpack(get(id, 'state', 'claims')) end
  if state == 'queued' or state == 'running' then guarded(0, withdraw, id, state) end
  if exists(id) then  -- it was final, or is damaged
    if not (state and final(state)) then forget(id) end
    remove(id)
  end
  redis.call('SET', key('deleted', id), nonce .. ' ' .. (state or ''), 'EX', 10)
  return {'deleted', state ~= 'running' and claims or '', state or ''}
end
