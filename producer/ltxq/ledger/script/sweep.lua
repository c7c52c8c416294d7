-- What nobody else will notice, found by whichever supervisor looks next.

-- Nobody swept for a while: Redis was away, and so every lease is late. The workers have another one to
-- be heard from, rather than lose all their jobs.
local function extend_leases(lease)
  for _, id in ipairs(redis.call('ZRANGE', key('running'), 0, -1)) do
    redis.call('ZADD', key('running'), 'XX', 'GT', now + lease, id)
  end
end

-- Queued jobs of a lane whose message is gone: the lane is empty, or a later one was taken before it.
local function overtaken(queue, lane, most)
  local empty = redis.call('LLEN', message_list(queue, lane)) == 0
  local mark = tonumber(redis.call('HGET', key('watermark', queue), lane) or 0) or 0
  if mark ~= mark then mark = 0 end  -- 'nan' is a number to Lua
  local upto = empty and '+inf' or string.format('(%.0f', mark)
  return redis.call('ZRANGEBYSCORE', key('waiting', queue, lane), '-inf', upto, 'LIMIT', 0, most)
end

local function forget_workers(most)
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', key('seen'), '-inf', now - FORGOTTEN, 'LIMIT', 0, most)) do
    redis.call('ZREM', key('seen'), worker)
    redis.call('HDEL', key('fleet'), worker)
  end
end

-- Every list is bounded by `most`; the next sweep goes on.
function operation.sweep(interval, lease, grace, most, max_lost, retention, failure, cancelled)
  interval, lease, grace, most = tonumber(interval), tonumber(lease), tonumber(grace), tonumber(most)
  local last = tonumber(redis.call('GET', key('swept')) or 0) or 0
  if last > now + interval then last = now - interval end  -- written over, or an older clock's
  if now - last < interval / 2 then return {'done by another'} end
  redis.call('SET', key('swept'), now)

  local owners = redis.pcall('SRANDMEMBER', key('owners'), 100)  -- there may be many: all in time
  mend(owners.err and {} or owners)

  if now - last > 3 * interval then extend_leases(lease) end
  forget_workers(most)

  local function end_lease(id)
    local gpu = redis.call('HGET', key('job', id), 'gpu')
    return give_back(id, gpu == '1', tonumber(max_lost), retention, failure, cancelled, 'lease_ended')
  end
  local given = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('running'), '-inf', now, 'LIMIT', 0, most)) do
    given[#given + 1] = guarded(retention, end_lease, id)
  end

  local function send_again(id)
    if now - redis.call('HGET', key('job', id), 'sent') <= grace then return nil end
    count(id, 'sent_again')
    return put_at_head(id)
  end
  local again = {}
  for _, queue in ipairs(redis.call('SMEMBERS', key('queues'))) do
    for lane = 0, 5 do
      for _, id in ipairs(overtaken(queue, lane, most)) do
        if #again < most then again[#again + 1] = guarded(retention, send_again, id) end
      end
    end
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
