-- The job's life in Redis: every step that must be atomic, on Redis's own clock.
--
-- One script, which is this folder's files one after the other (reader.py has their order), and one
-- operation a call: KEYS[1] is the key prefix, ARGV[1] names the operation, the rest are its arguments.
-- Each may be repeated after a lost reply: submit by id, delete by a nonce, everything a worker
-- does by its claim's nonce. Times are milliseconds since 1970. ledger.py documents the operations; this is
-- the map of the keys:
--
--   job:<id>                hash: the record (fields: see `submit`, `claim`, `close`)
--   state:<state>           zset id → seq: every job is in exactly one, newest has the highest seq
--   owned:<owner>:<state>   the same of one owner's jobs, for those that have one
--   owners                  set of owners
--   recent:<owner>:<digest> id of the last job of this request, for some minutes (see `submit`)
--   workers:<queue>         zset worker → when it was last known to be ready
--   fleet                   hash worker → [queue, host, state], as its supervisor told it last
--   seen                    zset worker → when that was
--   holders                 hash worker → the instance of a supervisor that the name belongs to, and when it said so
--   draining                set of the hosts that are to take no more jobs
--   cleaned                 there while objects without a job were looked for not long ago
--   totals:<queue>          hash: what has happened to its jobs so far → how often (see `count`)
--   pace:<queue>            hash: what recent jobs took, in ms; `gpu` on the GPU, `whole` in all
--   waiting:<queue>:<band>  zset seq and id → tag: queued jobs of one priority. The least tag is claimed
--                           first, of equal ones the one that came first
--   tags:<queue>            zset owner → the tag of its next job, if the queue's virtual time is not later
--   vtime:<queue>           the queue's virtual time: the greatest tag claimed so far
--   claimed                 hash worker → nonce and id of its last claim
--   missing:<queue>         how many jobs had no wake-up when the queue was last swept
--   later:<queue>           zset id → not_before: queued jobs whose time has not come
--   deadlines               zset id → by when a job must have been started (start_within)
--   running                 zset id → the lease's deadline
--   held:<worker>           set of ids: its running jobs
--   taken:<worker>          list: the message it has in hand, until it is through with it
--   expiry                  zset id → when a finished job's record is removed
--   garbage                 zset <id>/<nonce> → when the objects of that claim are to be deleted
--   unreported              zset id → when it finished, until Celery's result is stored as well
--   webhooks                zset receiver → when it may next be sent one; its host stands for it
--   webhooks:<receiver>     zset id → when its webhook is due, until it is delivered or given up
--   sending:<receiver>      zset id → until when a sender has it to itself
--   deleted:<id>            the nonce of who deleted it, for seconds
--   idempotency             hash "<owner>:<key>" → id
--   silent                  when the last worker was heard that a sweep has found silent
--   queues                  set of the queues with jobs or workers
--   cursor                  where the next sweep goes on in `queues`
--   counter                 source of seq
--   corrupt                 there while indexes that were written over are built anew
--   swept                   when the last sweep ran
--   outage                  when a sweep found that nobody had swept for a while
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
-- The band a record names: 0 high, 1 normal, 2 low. Any other number is damage.
local function checked_band(band)
  if band == '0' or band == '1' or band == '2' then return tonumber(band) end
  error('not a valid band')
end
local function final(state) return state == 'succeeded' or state == 'failed' or state == 'cancelled' end

local STATES = {'queued', 'running', 'succeeded', 'failed', 'cancelled'}
local RECENT = 600           -- seconds within which a client may still send a submission again
local ALIVE = 10000          -- ms since a worker was known to be ready, to count as alive
local REMEMBERED = 604800000 -- ms a model counts as served after its last worker
local FORGOTTEN = 86400000   -- ms after which a worker nobody tells of is no longer shown
local NEWEST = 0.2           -- weight of the newest job in the pace
local CLAIMS = 60 * 17       -- characters of earlier claims' nonces that a record keeps
local GARBAGE = 100000       -- claims whose objects are still to be deleted; the orphans' look finds the rest
local OTHER = 'ltxq.other'   -- what was counted of queues that were forgotten
local OUTAGE = 6000          -- ms without a sweep, which each supervisor tries every 2 s: Redis was away
local TASK = 'ltxq.generate' -- as workers register it with Celery
local QUEUES = 256           -- with jobs or workers; a stranger may ask for any name
local OWNERS = 1000         -- that one step looks at where it cannot know which
local PAGE = 32              -- queues, or receivers of webhooks, one sweep looks at
local AT_ONCE = 4            -- webhooks on their way to one receiver, so that one that hangs holds no more

-- The next seq. The first is the time in tenths of a millisecond, so that no later one is
-- less though the counter is lost or written over.
local function next_seq()
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

-- A job as it stands in `waiting`, and its id.
local function as_waiting(id, seq) return string.format('%016.0f', seq) .. id end
local function id_of(waiting) return string.sub(waiting, 17) end

local function is_record(id) return redis.call('TYPE', key('job', id)).ok == 'hash' end

local operation = {}
