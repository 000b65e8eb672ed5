-- `forget`. ARGV: conversation (empty: all conversations of the user), number of forgotten messages
-- after which this run starts no further conversation. Returns the number of forgotten messages,
-- and 1 if another run is needed.
local only, limit = ARGV[1], tonumber(ARGV[2])
local count = 0

-- Whether messages of this conversation are forgotten. A message without a conversation (answered
-- by a worker of the original system) belongs to the default conversation.
local function is_in_scope(conversation)
  return only == '' or only == conversation or (conversation == '' and only == 'default')
end

-- Replaces the outcome of a message, if it has one, by a tombstone. The tombstone keeps the
-- position at which an outcome was delivered; `position` is used if the outcome's key has none.
local function forget(message, position)
  local key = outcome_key(message)
  redis.call('HDEL', key, 'f')
  redis.call('HSET', key, 'x', '1')
  if position then
    redis.call('HSETNX', key, 'p', position)
  end
  redis.call('PEXPIRE', key, int(DEDUP_TTL))
  count = count + 1
end

-- Notifies the worker that generates the answer that the message is cancelled, unless the message
-- has an outcome.
local function notify_worker(message)
  if not outcome(message) then
    redis.call(PUBLISH_COMMAND, TAG .. ':cancel', '{"message_id":"' .. message .. '"}')
  end
end

for _, message in ipairs(redis.call('SMEMBERS', ANSWERS_KEY)) do
  local conversation = redis.call('HGET', answer_key(message), 'conversation')
  if conversation and is_in_scope(conversation) then
    notify_worker(message)
    forget(message)
    remove_pending(message)
    remove_answer(message)
  end
end

for _, pending in ipairs(all_pending()) do
  if is_in_scope(cjson.decode(pending.entry)['conversation']) then
    notify_worker(pending.message)
    forget(pending.message)
    remove_pending(pending.message)
  end
end

-- The frames are removed, but the mailbox's floor stays: positions of clients remain valid, and a
-- client that resumes just does not receive these frames.
local epoch = redis.call('HGET', MAILBOX_KEY, 'ep')
for _, entry in ipairs(redis.call('ZRANGE', MAILBOX_ORDER_KEY, 0, -1)) do
  local offset, size, message, conversation = string.match(entry, '^(%d+):%d+:(%d+):(%S+) (%S*)$')
  if offset and is_in_scope(conversation) then
    redis.call('ZREM', MAILBOX_ORDER_KEY, entry)
    redis.call('HDEL', MAILBOX_FRAMES_KEY, offset)
    redis.call('HINCRBY', MAILBOX_KEY, 'bytes', '-' .. size)
    forget(message, epoch .. '.' .. offset)
  end
end

for _, member in ipairs(redis.call('ZRANGE', PREFIX .. 'hx', 0, -1)) do
  local message, conversation = string.match(member, '^(%S+) (%S+)$')
  if is_in_scope(conversation) then
    redis.call('ZREM', PREFIX .. 'hx', member)
    forget(message)
  end
end

local conversations = { only }
if only == '' then
  conversations = redis.call('ZRANGE', PREFIX .. 'hl', 0, -1)
end
local has_more = '0'
for _, conversation in ipairs(conversations) do
  if count >= limit then
    has_more = '1'
    break
  end
  local order_key = PREFIX .. 'ho:' .. conversation
  for _, message in ipairs(redis.call('ZRANGE', order_key, 0, -1)) do
    forget(message)
  end
  redis.call('DEL', PREFIX .. 'h:' .. conversation, order_key)
  redis.call('ZREM', PREFIX .. 'hl', conversation)
end
return { int(count), has_more }
