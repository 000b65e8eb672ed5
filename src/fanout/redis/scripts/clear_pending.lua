-- `clear_pending`. ARGV: message
redis.call('HDEL', PENDING_KEY, ARGV[1])
return { 'done' }
