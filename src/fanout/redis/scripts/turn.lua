-- Reads the turns of a conversation. Shared by `begin`, `context` and `history`. A turn is one
-- value: status, length of the question in bytes (`-` for none), `:`, question, answer. A turn with
-- parts also has `,` and the length of the answer in bytes before the colon, and ends with the
-- parts, a JSON array.

-- The first byte of a failed turn.
local FAILED = string.byte('f')

-- Returns the turn of each message in `page`, a flat list of messages and times; `false` for a
-- message without a turn. Loads at most 1000 turns per command, because Lua limits the number of
-- arguments of a call.
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

-- Returns a turn without its parts.
local function without_parts(turn)
  local head, question_length, answer_length, from = string.match(turn, '^(%a([%d-]+)),(%d+):()')
  if not head then
    return turn
  end
  local length = (tonumber(question_length) or 0) + tonumber(answer_length)
  return head .. ':' .. string.sub(turn, from, from + length - 1)
end

-- Returns the version of a conversation's history: the message of the newest turn and the time of
-- that turn, which history.lua advances when any turn changes. Empty if the conversation has no
-- turns.
local function history_version(conversation)
  local last = redis.call('ZREVRANGE', PREFIX .. 'ho:' .. conversation, 0, 0, 'WITHSCORES')
  return last[1] and last[1] .. ' ' .. last[2] or ''
end
