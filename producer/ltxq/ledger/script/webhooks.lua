-- The outbox of webhooks: `webhooks` orders receivers, `webhooks:<receiver>` the jobs of one.

-- The host of the request's webhook_url; nil if there is none or the record is damaged: the job ends anyway.
local function receiver_of(id)
  local ok, request = pcall(cjson.decode, redis.call('HGET', key('job', id), 'request') or '')
  local url = ok and type(request) == 'table' and request.webhook_url
  if type(url) ~= 'string' then return nil end
  local host = string.match(url, '^%a+://(%[[^%]]*%])') or string.match(url, '^%a+://([^/?#:]*)')
  return string.lower(host or '')
end

-- Notes when the next attempt to a receiver may begin: when its first webhook is due and fewer than AT_ONCE
-- attempts are under way.
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

-- The attempt under way has ended; the next one is due at `due`, or never if that is nil.
local function settle_webhook(id, receiver, due)
  redis.call('ZREM', key('sending', receiver), id)
  if due then
    redis.call('ZADD', key('webhooks', receiver), due, id)
  else
    redis.call('ZREM', key('webhooks', receiver), id)
  end
  schedule(receiver)
end

-- Hands out the webhook that has been due longest, among receivers with fewer than AT_ONCE attempts under way.
-- Nobody else is given it until the lease ends. `webhook_failed` must name the attempt's number: an older
-- attempt changes nothing.
function operation.take_webhook(lease)
  for _ = 1, 100 do  -- passes over damaged records; the next call goes on
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

-- `wait`: milliseconds to the next attempt; '' for none.
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

-- How many webhooks wait, of the first receivers only: strangers may name any number of them.
function operation.webhooks_waiting()
  local waiting = 0
  for _, receiver in ipairs(redis.call('ZRANGE', key('webhooks'), 0, OWNERS)) do
    waiting = waiting + redis.call('ZCARD', key('webhooks', receiver))
  end
  return waiting
end
