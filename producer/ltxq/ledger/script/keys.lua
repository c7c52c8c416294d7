-- The ledger in Redis: every step of a job that must be atomic, on Redis's own clock.
--
-- This folder's files, one after the other (script.py has their order), are one script. A call runs one
-- operation: KEYS[1] is the key prefix, ARGV[1] names the operation, the rest are its arguments. An
-- operation may be repeated after a lost reply: submit by id, delete by a nonce, everything that a worker
-- does by its claim's nonce. Times are milliseconds since 1970. The Python modules above this folder
-- document the operations. The keys:
--
--   job:<id>                hash: the record (fields: see `submit`, `claim`, `close`)
--   state:<state>           zset id → seq: every job is in exactly one, newest has the highest seq
--   owned:<owner>:<state>   the same for the jobs of one owner
--   owners                  set of owners
--   recent:<owner>:<digest> id of the last job of this request, kept for ten minutes (see `submit`)
--   workers:<queue>         zset worker → when its supervisor last said that it is ready
--   fleet                   hash worker → [queue, host, state], from its supervisor's last heartbeat
--   seen                    zset worker → when that heartbeat came
--   holders                 hash worker → the supervisor instance that holds the name, and its last heartbeat
--   limits                  hash queue → JSON of its model's limits (limits.py)
--   draining                set of hosts that are to take no more jobs
--   cleaned                 exists while no supervisor needs to look for objects without a job
--   totals:<queue>          hash: event → how often it has happened (see `count`)
--   pace:<queue>            hash: moving averages of recent jobs, in ms: `gpu` on the GPU, `whole` in all
--   waiting:<queue>:<band>  zset seq and id → tag: queued jobs of one priority. The lowest tag is claimed
--                           first; of equal tags, the job that came first
--   tags:<queue>            zset owner → the tag of its next job, unless the queue's virtual time is later
--   vtime:<queue>           the queue's virtual time: the highest tag claimed so far
--   claimed                 hash worker → nonce and id of its last claim
--   missing:<queue>         how many waiting jobs had no wake-up at the last sweep
--   later:<queue>           zset id → not_before: queued jobs that may not start yet
--   deadlines               zset id → by when a job must have been started (start_within)
--   running                 zset id → when its lease ends
--   held:<worker>           set of ids: the worker's running jobs
--   taken:<worker>          list: the Celery message that the worker has taken and not finished
--   expiry                  zset id → when a finished job's record is removed
--   garbage                 zset <id>/<nonce> → when the objects of that claim are to be deleted
--   undeleted               zset <id>/<nonce> → when the storage first refused to delete an object of that claim
--   unreported              zset id → when it finished, until Celery's result is stored too
--   webhooks                zset receiver (a host) → when the next attempt may begin
--   webhooks:<receiver>     zset id → when its webhook is due, until it is delivered or given up
--   sending:<receiver>      zset id → when the sender's lease on its attempt ends
--   deleted:<id>            the nonce of the call that deleted it and the state it had, kept for seconds
--   idempotency             hash "<owner>:<key>" → id
--   silent                  the last heartbeat of the last worker that a sweep found silent
--   queues                  set of the queues with jobs or workers
--   cursor                  where the next sweep goes on in `queues`
--   counter                 source of seq
--   corrupt                 exists until indexes that were written over are built anew
--   swept                   when the last sweep ran
--   outage                  when a sweep last found that no supervisor had swept for a while
--   probe                   written by workers to see whether Redis takes writes, kept for a minute
--   changed:<id>            channel: a message for each change of the record
--   cancel:<worker>         channel: ids of the worker's running jobs that are to stop

local P = KEYS[1]
local function key(...) return P .. table.concat({...}, ':') end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function get(id, ...) return redis.call('HMGET', key('job', id), ...) end
local function set(id, ...) redis.call('HSET', key('job', id), ...) end
local function changed(id) redis.call('PUBLISH', key('changed', id), '') end
-- The band of a record: 0 high, 1 normal, 2 low. Any other value is damage.
local function checked_band(band)
  if band == '0' or band == '1' or band == '2' then return tonumber(band) end
  error('not a valid band')
end
local function final(state) return state == 'succeeded' or state == 'failed' or state == 'cancelled' end

local STATES = {'queued', 'running', 'succeeded', 'failed', 'cancelled'}
local RECENT = 600           -- seconds within which a client may repeat a submission (`resent`)
local ALIVE = 10000          -- ms after a worker's last ready heartbeat in which it counts as alive
local REMEMBERED = 604800000 -- ms after its last worker in which a model counts as served
local FORGOTTEN = 86400000   -- ms after a worker's last heartbeat until it is no longer shown
local NEWEST = 0.2           -- weight of the newest job in the pace
local CLAIMS = 60 * 17       -- characters of earlier claims' nonces in a record
local GARBAGE = 100000       -- most claims in `garbage`; the search for orphaned objects finds the rest
local UNDELETED = 1000       -- most claims in `undeleted`, which is for people to look at
local OTHER = 'ltxq.other'   -- the totals of queues that were forgotten
local OUTAGE = 6000          -- ms without a sweep (each supervisor tries every 2 s) that mean Redis was away
local TASK = 'ltxq.generate' -- as workers register it with Celery
local QUEUES = 256           -- most queues: strangers may submit to any model name
local OWNERS = 1000          -- most owners, workers or receivers that one operation walks
local PAGE = 32              -- queues, or receivers of webhooks, in one sweep
local AT_ONCE = 4            -- attempts under way to one receiver, so a hanging one blocks few senders

-- The next seq. It starts at the time in tenths of a millisecond, so it keeps growing when the
-- counter is lost or written over.
local function next_seq()
  local stamp = redis.pcall('INCR', key('counter'))
  if type(stamp) == 'number' and stamp > 1 and stamp < 2 ^ 53 then return stamp end
  stamp = time[1] * 10000 + math.floor(time[2] / 100)
  redis.call('SET', key('counter'), string.format('%.0f', stamp))
  return stamp
end

-- The indexes by state that hold a job: everybody's, and its owner's.
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

-- A job's member in `waiting`, and the id in such a member.
local function as_waiting(id, seq) return string.format('%016.0f', seq) .. id end
local function id_of(waiting) return string.sub(waiting, 17) end

local function is_record(id) return redis.call('TYPE', key('job', id)).ok == 'hash' end
-- Whether a client has deleted the job while a worker had it. Until that worker lets go of it, supervisors
-- still see it, so that a hung one is found; for clients it is gone.
local function is_withdrawn(id) return redis.pcall('HGET', key('job', id), 'withdrawn') == '1' end
-- Whether clients see a job of that id.
local function exists(id) return redis.call('EXISTS', key('job', id)) == 1 and not is_withdrawn(id) end

local operation = {}
