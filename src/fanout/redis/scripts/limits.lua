-- How much a user may ask for. `r` is the time (microseconds) from which on another message is free
-- again: each moves it by a message's share of the window, and it may be at most a window ahead.

-- Whether a message would begin a conversation above the limit. Those that only pending messages
-- are in count as well: each will be there when its message has ended.
local function one_too_many(conversation)
  if redis.call('ZSCORE', P .. 'hl', conversation) then
    return false
  end
  local count = redis.call('ZCARD', P .. 'hl')
  -- Only who is near the limit pays for the look at each.
  if count >= CONVERSATIONS or count + redis.call('HLEN', PENDING_KEY) < CONVERSATIONS then
    return count >= CONVERSATIONS
  end
  local seen = {}
  for _, pending in ipairs(all_pending()) do
    local name = cjson.decode(pending.entry)['conversation']
    if name == conversation then
      return false
    end
    if not seen[name] and not redis.call('ZSCORE', P .. 'hl', name) then
      seen[name] = true
      count = count + 1
    end
  end
  return count >= CONVERSATIONS
end

-- Nothing where one more message is allowed; then it is counted.
local function over_limit(conversation)
  if PENDING > 0 and redis.call('HLEN', PENDING_KEY) >= PENDING and #all_pending() >= PENDING then
    return { 'pending' }
  end
  if CONVERSATIONS > 0 and one_too_many(conversation) then
    return { 'conversations' }
  end
  if DAILY > 0 and tonumber(redis.call('GET', TODAY) or '0') >= DAILY then
    return { 'tokens', int(DAY - now % DAY) }
  end
  if RATE > 0 then
    local share = math.max(math.floor(WINDOW / RATE), 1)
    local free = math.max(tonumber(redis.call('GET', P .. 'r') or '0'), now_us)
    local wait = free + share - WINDOW - now_us
    if wait > 0 then
      return { 'rate', int(math.ceil(wait / 1000)) }
    end
    redis.call('SET', P .. 'r', int(free + share), 'PX', int(math.ceil(WINDOW / 1000) + 1))
  end
end
