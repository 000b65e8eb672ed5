-- The pieces of a stream, which is the live text of one attempt: a list with an element for each
-- piece. Lengths and offsets count UTF-16 code units.
--   +PART:END:PREVIOUS_END:KIND:META_BYTES:META TEXT   opens a part (without the space); END is the
--                                                      length of the text, PREVIOUS_END that of the
--                                                      previous part (empty for the first part)
--   PART:OFFSET:END:TEXT                               continues the last part

local function stream_key(message, stream)
  return PREFIX .. 's:' .. message .. ':' .. stream
end

-- Removes the answer in flight of a message with the pieces of its stream.
local function remove_answer(message)
  local stream = redis.call('HGET', answer_key(message), 'stream')
  if stream then
    redis.call('DEL', answer_key(message), stream_key(message, stream))
  end
  redis.call('SREM', ANSWERS_KEY, message)
end

-- Whether a piece (an element, or nil) ends at `length` in the part with this number.
local function is_end(element, part, length)
  if not element then
    return false
  end
  local index, piece_end = string.match(element, '^(%d+):%d+:(%d+):')
  if not index then
    index, piece_end = string.match(element, '^%+(%d+):(%d+):')
  end
  return tonumber(index) == part and tonumber(piece_end) == length
end

-- Returns the parts that the pieces of a list form. Drops repeated pieces. Stops at a hole, because
-- what follows a missing piece is not readable. pieces.rs does the same for readers.
local function load_parts(key)
  local parts = {}
  local last
  for _, element in ipairs(redis.call('LRANGE', key, 0, -1)) do
    if string.byte(element) == 43 then -- a plus sign
      local index, length, previous_end, kind, meta_bytes, first =
        string.match(element, '^%+(%d+):(%d+):(%d*):([%w_]+):(%d+):()')
      index = tonumber(index)
      if index == #parts then
        if (tonumber(previous_end) or 0) ~= (last and last.length or 0) then
          break
        end
        local text_start = first + tonumber(meta_bytes)
        last = {
          header = string.sub(element, first - #kind - #meta_bytes - 2, text_start - 1),
          kind = kind, meta = string.sub(element, first, text_start - 1),
          previous_end = previous_end, length = tonumber(length),
          elements = { element }, starts = { text_start },
        }
        parts[#parts + 1] = last
      elseif index > #parts then
        break
      end
    else
      local index, offset, piece_end, first = string.match(element, '^(%d+):(%d+):(%d+):()')
      index, offset, piece_end = tonumber(index), tonumber(offset), tonumber(piece_end)
      if index + 1 == #parts and offset == last.length then
        last.length = piece_end
        last.elements[#last.elements + 1] = element
        last.starts[#last.starts + 1] = first
      elseif index >= #parts or piece_end > parts[index + 1].length then
        break
      end
    end
  end
  return parts
end

-- Returns the text of a part that `load_parts` returned.
local function part_text(part)
  local texts = {}
  for i, element in ipairs(part.elements) do
    texts[i] = string.sub(element, part.starts[i])
  end
  return table.concat(texts)
end
