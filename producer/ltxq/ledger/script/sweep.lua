-- Repairs that no other operation makes, done by the supervisor that sweeps next.

-- Called when nobody swept for a while: Redis was away, and no lease could be renewed. Every lease gets its
-- whole length again, so that workers keep their jobs; `outage` does the same for supervisors' names.
local function extend_leases(lease)
  redis.call('SET', key('outage'), now)
  for _, id in ipairs(redis.call('ZRANGE', key('running'), 0, -1)) do
    redis.call('ZADD', key('running'), 'XX', 'GT', now + lease, id)
  end
end

-- Sends the missing wake-ups: those that were missing at the last sweep too, since a message may be on its
-- way. It does not matter which waiting job a wake-up names.
local function wake_again(queue, most)
  local sent, missing = 0, missing_wakeups(queue)
  local before = tonumber(redis.call('GETSET', key('missing', queue), missing) or 0) or 0
  local again = math.min(missing, before, most)
  for band = 0, 2 do
    if sent >= again then break end
    for _, waiting in ipairs(redis.call('ZRANGE', key('waiting', queue, band), 0, again - sent - 1)) do
      send_wakeup(id_of(waiting), queue)
      sent = sent + 1
    end
  end
  if sent > 0 then
    redis.call('SET', key('missing', queue), missing - sent)
    redis.pcall('HINCRBY', key('totals', queue), 'sent_again', sent)
  end
end

-- A plain Celery producer's message with a Celery priority is in one of three lists beside the queue's own;
-- this moves it to the queue, the only list that workers read. A job's priority is in its request.
local function gather(queue, most)
  for _, step in ipairs({'3', '6', '9'}) do
    for _ = 1, most do
      local message = redis.pcall('LMOVE', queue .. '\6\22' .. step, queue, 'RIGHT', 'LEFT')
      if not message or message.err then break end
    end
  end
end

-- Puts back the messages of workers that have been silent for a lease, each once.
local function put_back_of_silent(lease, most)
  local before = redis.pcall('GET', key('silent'))
  before = type(before) == 'string' and tonumber(before) or 0
  if not (before <= now - lease) then before = 0 end  -- written over
  local silent = redis.call('ZRANGEBYSCORE', key('seen'), '(' .. string.format('%.0f', before), now - lease, 'LIMIT', 0, most)
  for _, worker in ipairs(silent) do put_back(worker) end
  if #silent > 0 then redis.call('SET', key('silent'), redis.call('ZSCORE', key('seen'), silent[#silent])) end
end

local function forget_workers(most)
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', key('seen'), '-inf', now - FORGOTTEN, 'LIMIT', 0, most)) do
    put_back(worker)
    redis.call('ZREM', key('seen'), worker)
    redis.call('HDEL', key('fleet'), worker)
    redis.call('HDEL', key('holders'), worker)
    redis.call('HDEL', key('claimed'), worker)
  end
end

-- A job whose `not_before` has passed begins to wait.
local function release(id, queue)
  redis.call('ZREM', key('later', queue), id)
  local state, band, cost, owner, seq = unpack(get(id, 'state', 'band', 'cost', 'owner', 'seq'))
  if state ~= 'queued' then return end
  join_queue(id, seq, queue, checked_band(band), cost, owner or '')
  redis.call('HDEL', key('job', id), 'not_before')
  changed(id)
end

-- Forgets a queue without jobs or workers, since strangers may submit to any name. Its totals are added to
-- those of the queue `other`.
local function forget_queue(queue)
  if redis.call('ZCARD', key('later', queue)) > 0 then return end
  if redis.call('ZCOUNT', key('workers', queue), now - REMEMBERED, '+inf') > 0 then return end
  for band = 0, 2 do
    if redis.call('ZCARD', key('waiting', queue, band)) > 0 then return end
  end
  local totals = redis.call('HGETALL', key('totals', queue))
  for i = 1, #totals, 2 do
    redis.pcall('HINCRBY', key('totals', OTHER), totals[i], totals[i + 1])
  end
  redis.call('SREM', key('queues'), queue)
  redis.call('HDEL', key('limits'), queue)
  for _, name in ipairs({'totals', 'pace', 'workers', 'tags', 'vtime', 'missing'}) do redis.call('DEL', key(name, queue)) end
end

-- The queues of this sweep; each has its turn.
local function next_queues()
  local cursor = redis.pcall('GET', key('cursor'))
  cursor = type(cursor) == 'string' and #cursor < 16 and string.match(cursor, '^%d+$') or '0'
  local page = redis.call('SSCAN', key('queues'), cursor, 'COUNT', PAGE)
  redis.call('SET', key('cursor'), page[1])
  return page[2]
end

-- Each list that it walks is bounded by `most`, or continued by the next sweep.
function operation.sweep(interval, lease, grace, most, max_lost, retention, failure, cancelled, late)
  interval, lease, grace, most = tonumber(interval), tonumber(lease), tonumber(grace), tonumber(most)
  local last = tonumber(redis.call('GET', key('swept')) or 0) or 0
  if last > now + interval then last = now - interval end  -- written over, or from a faster clock
  if now - last < interval / 2 then return {'done by another'} end
  redis.call('SET', key('swept'), now)

  local owners = redis.pcall('SRANDMEMBER', key('owners'), 100)  -- at random: each is checked in time
  local queues = next_queues()
  repair_indexes(owners.err and {} or owners, queues)

  if now - last > 3 * interval then extend_leases(lease) end
  put_back_of_silent(lease, most)
  forget_workers(most)

  local function end_lease(id)
    local gpu = redis.call('HGET', key('job', id), 'gpu')
    return give_back(id, gpu == '1', tonumber(max_lost), retention, failure, cancelled, 'lease_ended')
  end
  local given = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('running'), '-inf', now, 'LIMIT', 0, most)) do
    given[#given + 1] = guarded(retention, end_lease, id)
  end

  local function end_late(id)
    redis.call('ZREM', key('deadlines'), id)
    if redis.call('HGET', key('job', id), 'state') ~= 'queued' then return nil end
    close(id, 'queued', 'cancelled', 'error', late, retention)
    return {id, 'cancelled'}
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('deadlines'), '-inf', now, 'LIMIT', 0, most)) do
    given[#given + 1] = guarded(retention, end_late, id)
  end

  for _, queue in ipairs(queues) do
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('later', queue), '-inf', now, 'LIMIT', 0, most)) do
      guarded(retention, release, id, queue)
    end
    gather(queue, most)
    wake_again(queue, most)
    forget_queue(queue)
  end

  local unreported = redis.call('ZRANGEBYSCORE', key('unreported'), '-inf', now - grace, 'LIMIT', 0, most)
  local corrupt = redis.call('EXISTS', key('corrupt'))
  return {'swept', given, unreported, corrupt}
end

-- Removes a record past its retention.
local function expire(id)
  local state = is_record(id) and redis.call('HGET', key('job', id), 'state')
  if state == 'queued' or state == 'running' then  -- damaged by hand, or submitted again
    redis.call('ZREM', key('expiry'), id)
    return
  end
  if not (state and final(state)) then forget(id) end
  remove(id)
end

-- Removes records past their retention and hands out claims whose objects are to be deleted; nobody else is
-- given the same claims until the lease ends.
function operation.take_garbage(lease, most)
  local expired = redis.call('ZRANGEBYSCORE', key('expiry'), '-inf', now, 'LIMIT', 0, most)
  for _, id in ipairs(expired) do
    if not pcall(expire, id) then redis.call('ZREM', key('expiry'), id) end
  end
  local taken = redis.call('ZRANGEBYSCORE', key('garbage'), '-inf', now, 'LIMIT', 0, most)
  for _, claim in ipairs(taken) do redis.call('ZADD', key('garbage'), now + lease, claim) end
  return {taken, #expired}
end

function operation.garbage_deleted(...)
  redis.call('ZREM', key('garbage'), ...)
  redis.call('ZREM', key('undeleted'), ...)
  return 'ok'
end

local function note_undeleted(claim)
  if redis.call('ZCARD', key('undeleted')) < UNDELETED then redis.call('ZADD', key('undeleted'), 'NX', now, claim) end
end

-- Claims of which the storage refuses to delete an object are handed out again after `again`, and no more when
-- it has refused for `keep`: the search for orphaned objects has found them by then.
function operation.garbage_refused(again, keep, ...)
  for _, claim in ipairs({...}) do
    note_undeleted(claim)
    local since = tonumber(redis.call('ZSCORE', key('undeleted'), claim) or now)
    if now - since > tonumber(keep) then
      redis.call('ZREM', key('garbage'), claim)
    else
      redis.call('ZADD', key('garbage'), 'XX', now + tonumber(again), claim)
    end
  end
  return 'ok'
end

-- After a search of the whole bucket: the claims given are those of which an orphaned object could not be deleted.
function operation.orphans_refused(...)
  local refused = {}
  for _, claim in ipairs({...}) do
    refused[claim] = true
    note_undeleted(claim)
  end
  for _, claim in ipairs(redis.call('ZRANGE', key('undeleted'), 0, -1)) do
    if not refused[claim] and not redis.call('ZSCORE', key('garbage'), claim) then
      redis.call('ZREM', key('undeleted'), claim)
    end
  end
  return 'ok'
end

-- How many claims' objects could not be deleted, and the first of them.
function operation.undeleted(most)
  return {redis.call('ZCARD', key('undeleted')), redis.call('ZRANGE', key('undeleted'), 0, tonumber(most) - 1)}
end
