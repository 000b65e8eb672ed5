-- Checks the limits on what a user may request, for `admit`. The rate limit is a token bucket,
-- stored in `r` as the time (microseconds) at which the bucket is full again. Each message moves
-- this time by `window / requests`. A message that would move it further than one window ahead is
-- refused.

-- Whether a message would begin a conversation above the limit. A conversation that has only
-- pending messages counts too, because its first outcome creates it in the history.
local function exceeds_conversations(conversation)
  if redis.call('ZSCORE', PREFIX .. 'hl', conversation) then
    return false
  end
  local count = redis.call('ZCARD', PREFIX .. 'hl')
  -- The pending messages are read only if they can decide whether the limit is exceeded.
  if count >= MAX_CONVERSATIONS
    or count + redis.call('HLEN', PENDING_KEY) < MAX_CONVERSATIONS then
    return count >= MAX_CONVERSATIONS
  end
  local seen = {}
  for _, pending in ipairs(all_pending()) do
    local name = cjson.decode(pending.entry)['conversation']
    if name == conversation then
      return false
    end
    if not seen[name] and not redis.call('ZSCORE', PREFIX .. 'hl', name) then
      seen[name] = true
      count = count + 1
    end
  end
  return count >= MAX_CONVERSATIONS
end

-- Checks all limits for one more message. If a limit is exceeded, returns the reply that refuses
-- the message; otherwise counts the message against the rate limit and returns nil.
local function check_limits(conversation)
  if MAX_PENDING > 0 and redis.call('HLEN', PENDING_KEY) >= MAX_PENDING
    and #all_pending() >= MAX_PENDING then
    return { 'pending' }
  end
  if MAX_CONVERSATIONS > 0 and exceeds_conversations(conversation) then
    return { 'conversations' }
  end
  if DAILY_TOKENS > 0 and tonumber(redis.call('GET', TODAY_KEY) or '0') >= DAILY_TOKENS then
    return { 'tokens', int(DAY - now % DAY) }
  end
  if RATE_REQUESTS > 0 then
    local share = math.max(math.floor(RATE_WINDOW_US / RATE_REQUESTS), 1)
    local full = math.max(tonumber(redis.call('GET', PREFIX .. 'r') or '0'), now_us) + share
    local wait = full - RATE_WINDOW_US - now_us
    if wait > 0 then
      return { 'rate', int(math.ceil(wait / 1000)) }
    end
    local expiry = math.ceil(RATE_WINDOW_US / 1000) + 1
    redis.call('SET', PREFIX .. 'r', int(full), 'PX', int(expiry))
  end
end
