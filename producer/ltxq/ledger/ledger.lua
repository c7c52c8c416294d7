-- The job's life in Redis: every step that must be atomic, on Redis's own clock.
--
-- One script, one operation a call: KEYS[1] is the key prefix, ARGV[1] names the operation, the
-- rest are its arguments. Each may be repeated after a lost reply: submit by id, claim and delete by nonce,
-- everything a worker writes by its token. Times are milliseconds since 1970. ledger.py documents
-- the operations; this is the map of the keys:
--
--   job:<id>                hash: the record (fields: see `submit`, `claim`, `close`)
--   state:<state>           zset id → seq: every job is in exactly one, newest has the highest seq
--   owned:<owner>:<state>   the same of one owner's jobs, for those that have one
--   owners                  set of owners
--   recent:<owner>:<digest> id of the last job of this request, for some minutes (see `submit`)
--   workers:<queue>         zset worker → when it was last known to be ready
--   fleet                   hash worker → [queue, host, state], as its supervisor told it last
--   seen                    zset worker → when that was
--   draining                set of the hosts that are to take no more jobs
--   cleaned                 there while objects without a job were looked for not long ago
--   totals:<queue>          hash: what has happened to its jobs so far → how often (see `count`)
--   pace:<queue>            hash: what recent jobs took, in ms; `gpu` on the GPU, `whole` in all
--   waiting:<queue>:<lane>  zset id → stamp: queued jobs by the lane their message was sent to
--   running                 zset id → the lease's deadline
--   watermark:<queue>       hash lane → the latest stamp known to have been overtaken up to
--   expiry                  zset id → when a finished job's objects and then its record are removed
--   unreported              zset id → when it finished, until Celery's result is stored as well
--   webhooks                zset receiver → when it may next be sent one; its host stands for it
--   webhooks:<receiver>     zset id → when its webhook is due, until it is delivered or given up
--   sending:<receiver>      zset id → until when a sender has it to itself
--   deleted:<id>            the nonce of who deleted it, for seconds
--   idempotency             hash "<owner>:<key>" → id
--   queues                  set of queue names
--   counter                 source of seq and stamp
--   spoilt                  there while indexes that were written over are built anew
--   swept                   when the last sweep ran
--   probe                   written by workers, for seconds, to see whether Redis takes writes
--   changed:<id>            channel, published to whenever the record changes
--   cancel:<worker>         channel, told the ids of its running jobs that are to stop

local P = KEYS[1]
local function key(...) return P .. table.concat({...}, ':') end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function get(id, ...) return redis.call('HMGET', key('job', id), ...) end
local function set(id, ...) redis.call('HSET', key('job', id), ...) end
local function changed(id) redis.call('PUBLISH', key('changed', id), '') end
-- The lane a record or a caller names. Any other number would have loops run for ever, and nobody is
-- served by Redis meanwhile.
local function checked_lane(lane)
  local number = tonumber(lane)
  if number and number >= 0 and number <= 5 and number % 1 == 0 then return number end
  error('not a valid lane')
end

-- Where Celery keeps a lane's messages.
local function message_list(queue, lane) return lane == 0 and queue or queue .. '\6\22' .. lane end
local function final(state) return state == 'succeeded' or state == 'failed' or state == 'cancelled' end

local STATES = {'queued', 'running', 'succeeded', 'failed', 'cancelled'}
local RECENT = 600           -- seconds within which a client may still send a submission again
local ALIVE = 10000          -- ms since a worker was known to be ready, to count as alive
local REMEMBERED = 604800000 -- ms a model counts as served after its last worker
local FORGOTTEN = 86400000   -- ms after which a worker nobody tells of is no longer shown
local NEWEST = 0.2           -- weight of the newest job in the pace
local AT_ONCE = 4            -- webhooks on their way to one receiver, so that one that hangs holds no more

-- The next seq or stamp. The first is the time in tenths of a millisecond, so that no later one is
-- less though the counter is lost or written over.
local function next_stamp()
  local stamp = redis.pcall('INCR', key('counter'))
  if type(stamp) == 'number' and stamp > 1 and stamp < 2 ^ 53 then return stamp end
  stamp = time[1] * 10000 + math.floor(time[2] / 100)
  redis.call('SET', key('counter'), string.format('%.0f', stamp))
  return stamp
end

-- The indexes by state a job is in: everybody's, and its owner's.
local function indexes(owner, state)
  if not owner or owner == '' then return {key('state', state)} end
  return {key('state', state), key('owned', owner, state)}
end

local function move(id, from, to)
  local seq, owner = unpack(get(id, 'seq', 'owner'))
  for _, index in ipairs(indexes(owner, from)) do redis.call('ZREM', index, id) end
  for _, index in ipairs(indexes(owner, to)) do redis.call('ZADD', index, seq, id) end
  set(id, 'state', to)
end

-- One more of what metrics are made of: submitted, claimed, succeeded, cancelled, failed:<code>, lost,
-- lease_ended, given_back, sent_again, webhook_delivered, webhook_failed, webhook_given_up. Never
-- the reason that a step fails.
local function count(id, what)
  local queue = redis.pcall('HGET', key('job', id), 'queue')
  if type(queue) == 'string' then redis.pcall('HINCRBY', key('totals', queue), what, 1) end
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

-- Of a queued job: how many are taken before it. Of any: how many workers there are for it, and
-- the pace of its queue.
local function find_place(id)
  local state, queue, lane = unpack(get(id, 'state', 'queue', 'lane'))
  if state ~= 'queued' and state ~= 'running' then return {} end
  local ahead = -1
  if state == 'queued' then
    ahead = redis.call('ZRANK', key('waiting', queue, lane), id) or 0
    for l = 0, checked_lane(lane) - 1 do ahead = ahead + redis.call('ZCARD', key('waiting', queue, l)) end
  end
  local alive = redis.call('ZCOUNT', key('workers', queue), now - ALIVE, '+inf')
  local gpu, whole = unpack(redis.call('HMGET', key('pace', queue), 'gpu', 'whole'))
  return {ahead, alive, gpu or '', whole or ''}
end

local function place(id)
  local readable, found = pcall(find_place, id)
  return readable and found or {}
end

-- The host of the request's webhook_url; nil where there is none. A record spoilt by hand is no
-- reason that its job cannot end.
local function receiver_of(id)
  local ok, request = pcall(cjson.decode, redis.call('HGET', key('job', id), 'request') or '')
  local url = ok and type(request) == 'table' and request.webhook_url
  if type(url) ~= 'string' then return nil end
  local host = string.match(url, '^%a+://(%[[^%]]*%])') or string.match(url, '^%a+://([^/?#:]*)')
  return string.lower(host or '')
end

-- When a receiver may next be sent one: when its first is due, and fewer than AT_ONCE are on their
-- way to it.
local function schedule(receiver)
  local sending = key('sending', receiver)
  redis.call('ZREMRANGEBYSCORE', sending, '-inf', now)
  local first = redis.call('ZRANGE', key('webhooks', receiver), 0, 0, 'WITHSCORES')
  if not first[1] then
    redis.call('ZREM', key('webhooks'), receiver)
    return
  end
  local at = tonumber(first[2])
  if redis.call('ZCARD', sending) >= AT_ONCE then
    at = math.max(at, tonumber(redis.call('ZRANGE', sending, 0, 0, 'WITHSCORES')[2]))
  end
  redis.call('ZADD', key('webhooks'), at, receiver)
end

-- Its webhook is due at that time; nil: never again.
local function settle_webhook(id, receiver, due)
  redis.call('ZREM', key('sending', receiver), id)
  if due then
    redis.call('ZADD', key('webhooks', receiver), due, id)
  else
    redis.call('ZREM', key('webhooks', receiver), id)
  end
  schedule(receiver)
end

-- A job reaches its final state. `field` is 'result' or 'error', `value` its JSON.
local function close(id, from, to, field, value, retention)
  local queue, lane = unpack(get(id, 'queue', 'lane'))
  redis.call('ZREM', key('waiting', queue, lane), id)
  redis.call('ZREM', key('running'), id)
  move(id, from, to)
  if to == 'succeeded' then note_pace(id, 'whole') end
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

-- (Re)queue a job at the head: the even lane of its priority, which workers take from first.
local function put_at_head(id)
  local queue, lane = unpack(get(id, 'queue', 'lane'))
  local head = checked_lane(lane) - lane % 2
  local stamp = next_stamp()
  redis.call('ZREM', key('waiting', queue, lane), id)
  redis.call('ZADD', key('waiting', queue, head), stamp, id)
  set(id, 'lane', head, 'stamp', stamp, 'sent', now)
  return {id, queue, head, stamp}
end

-- Take a job from a worker that no longer works on it. `charged`: it held the GPU when the worker
-- was lost, so the loss counts against it. `failure` is the error it gets when that is once too
-- often, `cancelled` the one if its cancelling was asked for.
local function give_back(id, charged, max_lost, retention, failure, cancelled, reason)
  local lost, cancel = unpack(get(id, 'lost', 'cancel'))
  redis.call('ZREM', key('running'), id)
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
  local sent = put_at_head(id)
  changed(id)
  return {id, 'queued', sent[2], sent[3], sent[4]}
end

local function is_record(id) return redis.call('TYPE', key('job', id)).ok == 'hash' end

local function remove(id)
  if is_record(id) then
    local state, owner, idempotency, receiver = unpack(get(id, 'state', 'owner', 'idempotency', 'receiver'))
    if idempotency then
      redis.call('HDEL', key('idempotency'), (owner or '') .. ':' .. idempotency)
    end
    for _, index in ipairs(indexes(owner, state or '')) do redis.call('ZREM', index, id) end
    if receiver then settle_webhook(id, receiver, nil) end
  end
  redis.call('ZREM', key('expiry'), id)
  redis.call('ZREM', key('unreported'), id)
  redis.call('DEL', key('job', id))
  changed(id)
end

-- A record somebody wrote over: out of every index, so that nobody meets it again, and failed.
local DAMAGED = '{"code":"internal","message":"The job\'s record in Redis is damaged.",' ..
  '"hint":"Submit it again; `ltxq delete` removes this one.","retryable":false}'

local function forget(id)
  for _, state in ipairs(STATES) do
    redis.call('ZREM', key('state', state), id)
    for _, owner in ipairs(redis.call('SMEMBERS', key('owners'))) do
      redis.call('ZREM', key('owned', owner, state), id)
    end
  end
  for _, queue in ipairs(redis.call('SMEMBERS', key('queues'))) do
    for lane = 0, 5 do redis.call('ZREM', key('waiting', queue, lane), id) end
  end
  for _, index in ipairs({'running', 'expiry', 'unreported'}) do redis.call('ZREM', key(index), id) end
end

local function bury(id, retention)
  forget(id)
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

-- An index of another type than it should be was written over: away with it. A supervisor then builds
-- it anew from the records. Answers whether there was one. `owners`: whose to look at.
local function mend(owners)
  local found = false
  local function expect(kind, name)
    local is = redis.call('TYPE', name).ok
    if is ~= kind and is ~= 'none' then
      redis.call('DEL', name)
      found = true
    end
  end
  for _, name in ipairs({'running', 'expiry', 'unreported', 'webhooks', 'seen'}) do expect('zset', key(name)) end
  for _, name in ipairs({'owners', 'queues', 'draining'}) do expect('set', key(name)) end
  for _, name in ipairs({'idempotency', 'fleet'}) do expect('hash', key(name)) end
  for _, state in ipairs(STATES) do
    expect('zset', key('state', state))
    for _, owner in ipairs(owners) do expect('zset', key('owned', owner, state)) end
  end
  for _, receiver in ipairs(redis.call('ZRANGE', key('webhooks'), 0, -1)) do
    for _, name in ipairs({'webhooks', 'sending'}) do expect('zset', key(name, receiver)) end
  end
  for _, queue in ipairs(redis.call('SMEMBERS', key('queues'))) do
    for _, name in ipairs({'watermark', 'pace', 'totals'}) do expect('hash', key(name, queue)) end
    expect('zset', key('workers', queue))
    for lane = 0, 5 do
      expect('zset', key('waiting', queue, lane))
      expect('list', message_list(queue, lane))
    end
  end
  if found then redis.call('SET', key('spoilt'), 1) end
  return found
end

-- Put a job into the indexes its record says it is in.
local function index(id, lease, retention)
  local state, seq, owner, queue, lane, stamp = unpack(get(id, 'state', 'seq', 'owner', 'queue', 'lane', 'stamp'))
  local idempotency, finished, webhook, receiver = unpack(get(id, 'idempotency', 'finished', 'webhook', 'receiver'))
  for _, name in ipairs(indexes(owner, state)) do redis.call('ZADD', name, seq, id) end
  redis.call('SADD', key('queues'), queue)
  if owner then redis.call('SADD', key('owners'), owner) end
  if idempotency then redis.call('HSET', key('idempotency'), (owner or '') .. ':' .. idempotency, id) end
  if state == 'queued' then
    redis.call('ZADD', key('waiting', queue, checked_lane(lane)), stamp, id)
  elseif state == 'running' then
    redis.call('ZADD', key('running'), 'NX', now + lease, id)
  else
    redis.call('ZADD', key('expiry'), 'NX', finished + retention, id)
    redis.call('ZADD', key('unreported'), 'NX', now, id)
    if webhook == 'pending' then
      redis.call('ZADD', key('webhooks', receiver), 'NX', now, id)
      schedule(receiver)
    end
  end
end

-- `step(id, …)`, so that one damaged record stops no other job: that one is buried. What Redis
-- itself has against a write (it is full, a replica) is still an error.
local function guarded(retention, step, id, ...)
  local went_well, answer = pcall(step, id, ...)
  if went_well then return answer end
  local text = type(answer) == 'table' and answer.err or answer
  if string.find(text, 'WRONGTYPE', 1, true) and is_record(id) then error(answer) end  -- an index
  for _, sign in ipairs({'attempt to', 'WRONGTYPE', 'not a valid', 'concat', 'must be strings'}) do
    if string.find(text, sign, 1, true) then
      bury(id, retention)
      return nil
    end
  end
  error(answer)
end

local operation = {}

-- `resent`: '1' where the client has lost the answer to the same submission, which may have arrived:
-- then the last job of this request is that one. '0' where it may do so later; '' where it will not.
function operation.submit(id, contract, request, digest, queue, lane, owner, retry_of, idempotency, resent, max_queued, max_owned)
  local known = get(id, 'queue', 'lane', 'stamp', 'submitted')
  if known[1] then return {'accepted', {id, known[1], known[2], known[3]}, known[4], place(id)} end
  if idempotency ~= '' then
    local other = redis.call('HGET', key('idempotency'), owner .. ':' .. idempotency)
    if other and redis.call('EXISTS', key('job', other)) == 1 then
      local same = redis.call('HGET', key('job', other), 'digest') == digest
      return {same and 'repeated' or 'conflict', other}
    end
  end
  if resent == '1' then
    local other = redis.pcall('GET', key('recent', owner, digest))
    if type(other) == 'string' and redis.call('EXISTS', key('job', other)) == 1 then return {'repeated', other} end
  end
  local queued = redis.call('ZCARD', key('state', 'queued'))
  if queued >= tonumber(max_queued) then return {'full', queued, ''} end
  local owned = owner ~= '' and redis.call('ZCARD', key('owned', owner, 'queued')) or 0
  if owned >= tonumber(max_owned) then return {'full', owned, owner} end

  local stamp = next_stamp()
  set(id, 'contract', contract, 'state', 'queued', 'request', request, 'queue', queue,
      'lane', lane, 'stamp', stamp, 'seq', stamp, 'submitted', now, 'sent', now)
  if owner ~= '' then
    set(id, 'owner', owner)
    redis.call('SADD', key('owners'), owner)
  end
  if resent ~= '' then redis.call('SET', key('recent', owner, digest), id, 'EX', RECENT) end
  if retry_of ~= '' then set(id, 'retry_of', retry_of) end
  if idempotency ~= '' then
    set(id, 'idempotency', idempotency, 'digest', digest)
    redis.call('HSET', key('idempotency'), owner .. ':' .. idempotency, id)
  end
  for _, index in ipairs(indexes(owner, 'queued')) do redis.call('ZADD', index, stamp, id) end
  redis.call('ZADD', key('waiting', queue, lane), stamp, id)
  redis.call('SADD', key('queues'), queue)
  count(id, 'submitted')
  return {'accepted', {id, queue, lane, stamp}, now, place(id)}
end

-- The record of each job, and its place. Empty where there is none, 'damaged' where it is no hash.
function operation.read(...)
  local rows = {}
  for _, id in ipairs({...}) do
    local record = redis.pcall('HGETALL', key('job', id))
    if record.err then
      rows[#rows + 1] = {'damaged'}
    else
      rows[#rows + 1] = {record, place(id)}
    end
  end
  return {now, rows}
end

-- A supervisor tells of its workers: name, state, name, state, … Answers whether it is to drain.
function operation.present(queue, host, ...)
  local told = {...}
  redis.call('SADD', key('queues'), queue)
  redis.call('ZREMRANGEBYSCORE', key('workers', queue), '-inf', now - REMEMBERED)
  for i = 1, #told, 2 do
    redis.call('HSET', key('fleet'), told[i], cjson.encode({queue, host, told[i + 1]}))
    redis.call('ZADD', key('seen'), now, told[i])
    if told[i + 1] == 'ready' then redis.call('ZADD', key('workers', queue), now, told[i]) end
  end
  return redis.call('SISMEMBER', key('draining'), host)
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

-- Of every queue: how many wait in each lane and since when the first of them has, how many run,
-- how many workers are ready, and the pace. `hour` is the expiry of what finished an hour ago.
function operation.queues(retention)
  local running, rows = {}, {}
  for _, id in ipairs(redis.call('ZRANGE', key('running'), 0, -1)) do
    local queue = redis.pcall('HGET', key('job', id), 'queue')
    if type(queue) == 'string' then running[queue] = (running[queue] or 0) + 1 end
  end
  for _, queue in ipairs(redis.call('SMEMBERS', key('queues'))) do
    local lanes = {}
    for lane = 0, 5 do
      local waiting = key('waiting', queue, lane)
      local first = redis.call('ZRANGE', waiting, 0, 0)[1]
      local submitted = first and redis.pcall('HGET', key('job', first), 'submitted')
      submitted = type(submitted) == 'string' and tonumber(submitted) or now
      lanes[#lanes + 1] = {redis.call('ZCARD', waiting), now - submitted}
    end
    local alive = redis.call('ZCOUNT', key('workers', queue), now - ALIVE, '+inf')
    local gpu, whole = unpack(redis.call('HMGET', key('pace', queue), 'gpu', 'whole'))
    rows[#rows + 1] = {queue, lanes, running[queue] or 0, alive, gpu or '', whole or ''}
  end
  local hour = redis.call('ZCOUNT', key('expiry'), now + retention - 3600000, '+inf')
  return {rows, hour}
end

-- What metrics are made of beside `queues` and `fleet`.
function operation.totals()
  local rows = {}
  for _, queue in ipairs(redis.call('SMEMBERS', key('queues'))) do
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

local function cancel(id, retention, cancelled)
  local state = redis.call('HGET', key('job', id), 'state')
  if not state then return 'gone' end
  if state == 'queued' then
    close(id, 'queued', 'cancelled', 'error', cancelled, retention)
    return 'cancelled'
  elseif state == 'running' then
    set(id, 'cancel', 1)
    redis.call('PUBLISH', key('cancel', redis.call('HGET', key('job', id), 'worker')), id)
    changed(id)
  end
  return state
end

function operation.cancel(id, retention, cancelled)
  return guarded(retention, cancel, id, retention, cancelled) or (is_record(id) and 'failed' or 'gone')
end

function operation.delete(id, nonce)
  if redis.call('EXISTS', key('job', id)) == 0 then
    return redis.pcall('GET', key('deleted', id)) == nonce and 'deleted' or 'gone'
  end
  local state = is_record(id) and redis.call('HGET', key('job', id), 'state')
  if state == 'queued' or state == 'running' then return state end
  if not (state and final(state)) then forget(id) end
  remove(id)
  redis.call('ZADD', key('expiry'), now, id)  -- for what is left of it in storage
  redis.call('SET', key('deleted', id), nonce, 'EX', 10)
  return 'deleted'
end

function operation.reported(id)
  redis.call('ZREM', key('unreported'), id)
  return 'ok'
end

-- The webhook that has been due longest, of a receiver to which not too many are on their way; for
-- the caller alone until the lease ends. Its attempt's number is what `webhook_failed` must show: an
-- older one no longer has a say.
function operation.take_webhook(lease)
  for _ = 1, 100 do  -- those spoilt by hand, and then the next sender goes on
    local receiver = redis.call('ZRANGEBYSCORE', key('webhooks'), '-inf', now, 'LIMIT', 0, 1)[1]
    if not receiver then return {} end
    local id = redis.call('ZRANGEBYSCORE', key('webhooks', receiver), '-inf', now, 'LIMIT', 0, 1)[1]
    local state, own, attempts, finished
    if id and is_record(id) then
      state, own, attempts, finished = unpack(get(id, 'webhook', 'receiver', 'webhook_attempts', 'finished'))
    end
    if state == 'pending' and own == receiver then
      attempts = (tonumber(attempts or 0) or 0) + 1
      set(id, 'webhook_attempts', attempts)
      redis.call('ZADD', key('webhooks', receiver), now + lease, id)
      redis.call('ZADD', key('sending', receiver), now + lease, id)
      schedule(receiver)
      return {id, attempts, now - (tonumber(finished) or now)}
    end
    settle_webhook(id or '', receiver, nil)
  end
  return {}
end

function operation.webhook_delivered(id)
  local state, receiver = unpack(get(id, 'webhook', 'receiver'))
  if state ~= 'pending' then return 'settled' end
  redis.call('HDEL', key('job', id), 'webhook_error')
  set(id, 'webhook', 'delivered', 'webhook_delivered', now)
  settle_webhook(id, receiver or '', nil)
  count(id, 'webhook_delivered')
  changed(id)
  return 'delivered'
end

-- `wait`: milliseconds to the next attempt; '' if there is to be none.
function operation.webhook_failed(id, attempt, reason, wait)
  local state, current, receiver = unpack(get(id, 'webhook', 'webhook_attempts', 'receiver'))
  if state ~= 'pending' or current ~= attempt then return 'settled' end
  set(id, 'webhook_error', reason)
  if wait == '' then set(id, 'webhook', 'failed') end
  settle_webhook(id, receiver or '', wait ~= '' and now + wait or nil)
  count(id, wait == '' and 'webhook_given_up' or 'webhook_failed')
  changed(id)
  return 'noted'
end

function operation.webhooks_waiting()
  local waiting = 0
  for _, receiver in ipairs(redis.call('ZRANGE', key('webhooks'), 0, -1)) do
    waiting = waiting + redis.call('ZCARD', key('webhooks', receiver))
  end
  return waiting
end

-- What nobody else will notice. Every list is bounded by `most`; the next sweep goes on.
function operation.sweep(interval, lease, grace, most, max_lost, retention, failure, cancelled)
  interval, lease, grace, most = tonumber(interval), tonumber(lease), tonumber(grace), tonumber(most)
  local last = tonumber(redis.call('GET', key('swept')) or 0) or 0
  if last > now + interval then last = now - interval end  -- written over, or an older clock's
  if now - last < interval / 2 then return {'done by another'} end
  redis.call('SET', key('swept'), now)

  local owners = redis.pcall('SRANDMEMBER', key('owners'), 100)  -- there may be many: all in time
  mend(owners.err and {} or owners)

  if now - last > 3 * interval then
    -- Nobody swept for a while: Redis was away, and so every lease is late. Give the workers
    -- another one to be heard from, rather than take all their jobs away.
    for _, id in ipairs(redis.call('ZRANGE', key('running'), 0, -1)) do
      redis.call('ZADD', key('running'), 'XX', 'GT', now + lease, id)
    end
  end

  local function end_lease(id)
    local gpu = redis.call('HGET', key('job', id), 'gpu')
    return give_back(id, gpu == '1', tonumber(max_lost), retention, failure, cancelled, 'lease_ended')
  end
  local given = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('running'), '-inf', now, 'LIMIT', 0, most)) do
    given[#given + 1] = guarded(retention, end_lease, id)
  end

  -- A queued job whose message is gone: its lane is empty, or a later message was taken before it.
  local function send_again(id)
    if now - redis.call('HGET', key('job', id), 'sent') <= grace then return nil end
    count(id, 'sent_again')
    return put_at_head(id)
  end
  local again = {}
  for _, queue in ipairs(redis.call('SMEMBERS', key('queues'))) do
    for lane = 0, 5 do
      local empty = redis.call('LLEN', message_list(queue, lane)) == 0
      local mark = tonumber(redis.call('HGET', key('watermark', queue), lane) or 0) or 0
      if mark ~= mark then mark = 0 end  -- 'nan' is a number to Lua
      local upto = empty and '+inf' or string.format('(%.0f', mark)
      for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('waiting', queue, lane), '-inf', upto, 'LIMIT', 0, most)) do
        if #again < most then again[#again + 1] = guarded(retention, send_again, id) end
      end
    end
  end

  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', key('seen'), '-inf', now - FORGOTTEN, 'LIMIT', 0, most)) do
    redis.call('ZREM', key('seen'), worker)
    redis.call('HDEL', key('fleet'), worker)
  end

  local unreported = redis.call('ZRANGEBYSCORE', key('unreported'), '-inf', now - grace, 'LIMIT', 0, most)
  local spoilt = redis.call('EXISTS', key('spoilt'))
  return {'swept', given, again, unreported, spoilt}
end

-- Jobs past their retention, for the caller alone until the lease ends.
function operation.take_expired(lease, most)
  local taken = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('expiry'), '-inf', now, 'LIMIT', 0, most)) do
    local state = is_record(id) and redis.call('HGET', key('job', id), 'state')
    if state == 'queued' or state == 'running' then  -- spoilt by hand, or submitted again
      redis.call('ZREM', key('expiry'), id)
    else
      redis.call('ZADD', key('expiry'), now + lease, id)
      taken[#taken + 1] = id
    end
  end
  return taken
end

function operation.expire(id)
  local state = is_record(id) and redis.call('HGET', key('job', id), 'state')
  if state == 'queued' or state == 'running' then return state end
  if not (state and final(state)) then forget(id) end
  remove(id)
  return 'expired'
end

function operation.index(lease, retention, ...)
  for _, id in ipairs({...}) do
    if is_record(id) then guarded(retention, index, id, lease, retention) end
  end
  return 'ok'
end

-- Every step may be repeated, so one that met a spoilt index is, without it.
local function run() return operation[ARGV[1]](unpack(ARGV, 2)) end
local went_well, answer = pcall(run)
if went_well then return answer end
local text = type(answer) == 'table' and answer.err or answer
if string.find(text, 'WRONGTYPE', 1, true) then
  local owners = redis.pcall('SMEMBERS', key('owners'))
  if mend(owners.err and {} or owners) then return run() end
end
error(answer)
