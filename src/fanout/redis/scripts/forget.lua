-- ARGV: conversation (empty: everything of the user), messages after which no further conversation
-- is begun
local only, most = ARGV[1], tonumber(ARGV[2])
local count = 0

-- A message without a conversation (an original worker's answer) is of the default one.
local function here(conversation)
  return only == '' or only == conversation or (conversation == '' and only == 'default')
end

-- Its outcome becomes the note that it was forgotten, with the position where it was delivered.
local function forget(message, position)
  local key = P .. 'o:' .. message
  redis.call('HDEL', key, 'f')
  redis.call('HSET', key, 'x', '1')
  if position then
    redis.call('HSETNX', key, 'p', position)
  end
  redis.call('PEXPIRE', key, int(DEDUP_TTL))
  count = count + 1
end

-- What has no end yet ends as cancelled, and its worker is told.
local function stop(message)
  if not outcome(message) then
    redis.call(PUBLISH, TAG .. ':cancel', '{"message_id":"' .. message .. '"}')
  end
end

for _, message in ipairs(redis.call('SMEMBERS', P .. 'as')) do
  local conversation = redis.call('HGET', P .. 'a:' .. message, 'conversation')
  if conversation and here(conversation) then
    stop(message)
    forget(message)
    drop_pending(message)
    redis.call('DEL', P .. 'a:' .. message, P .. 't:' .. message)
    redis.call('SREM', P .. 'as', message)
  end
end

for _, pending in ipairs(all_pending()) do
  if here(cjson.decode(pending.entry)['conversation']) then
    stop(pending.message)
    forget(pending.message)
    drop_pending(pending.message)
  end
end

-- No floor is raised: to a client that resumes it is as if these frames had never been.
local epoch = redis.call('HGET', M, 'ep')
for _, entry in ipairs(redis.call('ZRANGE', MZ, 0, -1)) do
  local offset, size, message, conversation = string.match(entry, '^(%d+):%d+:(%d+):(%S+) (%S*)$')
  if offset and here(conversation) then
    redis.call('ZREM', MZ, entry)
    redis.call('HDEL', MF, offset)
    redis.call('HINCRBY', M, 'bytes', '-' .. size)
    forget(message, epoch .. '.' .. offset)
  end
end

for _, member in ipairs(redis.call('ZRANGE', P .. 'hx', 0, -1)) do
  local message, conversation = string.match(member, '^(%S+) (%S+)$')
  if here(conversation) then
    redis.call('ZREM', P .. 'hx', member)
    forget(message)
  end
end

local conversations = { only }
if only == '' then
  conversations = redis.call('ZRANGE', P .. 'hl', 0, -1)
end
local more = '0'
for _, conversation in ipairs(conversations) do
  if count >= most then
    more = '1'
    break
  end
  local order = P .. 'ho:' .. conversation
  for _, message in ipairs(redis.call('ZRANGE', order, 0, -1)) do
    forget(message)
  end
  redis.call('DEL', P .. 'h:' .. conversation, order)
  redis.call('ZREM', P .. 'hl', conversation)
end
return { int(count), more }
