-- Pending messages: a hash by message, with the time (microseconds) at which each was recorded and
-- its entry (JSON).
local function remove_pending(message)
  redis.call('HDEL', PENDING_KEY, message)
end

-- Returns the entry and its time, or nothing where it has expired.
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

-- Returns all pending messages (`message`, `entry`, `at`), oldest first, and removes expired ones.
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
