-- Reading of a conversation's turns. A turn is one value: status, length of the question (`-` for
-- none), `:`, question, answer.
local FAILED = string.byte('f')

-- Returns the turns of a page of messages and times; `false` where a turn does not exist. Loads in
-- chunks, because Lua limits the number of arguments of a call.
local function load_turns(turns_key, page)
  local turns = {}
  for first = 1, #page, 2000 do
    local messages = {}
    for i = first, math.min(first + 1998, #page), 2 do
      messages[#messages + 1] = page[i]
    end
    for _, turn in ipairs(redis.call('HMGET', turns_key, unpack(messages))) do
      turns[#turns + 1] = turn
    end
  end
  return turns
end

-- The version of a history (history.lua): its newest turn and that turn's time, which moves when
-- any turn changes. Empty where there are no turns.
local function history_version(conversation)
  local last = redis.call('ZREVRANGE', PREFIX .. 'ho:' .. conversation, 0, 0, 'WITHSCORES')
  return last[1] and last[1] .. ' ' .. last[2] or ''
end
