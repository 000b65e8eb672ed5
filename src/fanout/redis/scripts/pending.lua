-- Pending messages. The hash PENDING_KEY has for each message the time (microseconds) at which it
-- was recorded, a space, and its entry (JSON).
local function remove_pending(message)
  redis.call('HDEL', PENDING_KEY, message)
end

-- Returns the entry and the time of a value of the hash, or nothing if the entry has expired.
local function decode_pending(value)
  local at, entry = string.match(value, '^(%d+) (.*)$')
  at = tonumber(at)
  if at > now_us - PENDING_TTL * 1000 then
    return entry, at
  end
end

local function is_pending(message)
  local value = redis.call('HGET', PENDING_KEY, message)
  return value and decode_pending(value) ~= nil
end

-- Returns all pending messages (tables with `message`, `entry` and `at`), oldest first, and removes
-- expired entries from the hash.
local function all_pending()
  local values, found = redis.call('HGETALL', PENDING_KEY), {}
  for i = 1, #values, 2 do
    local entry, at = decode_pending(values[i + 1])
    if entry then
      found[#found + 1] = { message = values[i], entry = entry, at = at }
    else
      remove_pending(values[i])
    end
  end
  table.sort(found, function(a, b)
    return a.at < b.at or (a.at == b.at and a.message < b.message)
  end)
  return found
end
