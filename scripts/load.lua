-- wrk script: a GET, or a POST of the body in the environment variable BODY. Ends with 1 when any
-- request failed or none was answered.
local body = os.getenv("BODY")

if body then
    wrk.method = "POST"
    wrk.body = body
    wrk.headers["Content-Type"] = "application/json"
end

function done(summary, latency, requests)
    local e = summary.errors
    local failed = e.connect + e.read + e.write + e.status + e.timeout
    io.write(string.format("%d answers, %d errors (connect %d, read %d, write %d, status %d, " ..
        "timeout %d), median %.1f ms, 99 %% within %.1f ms\n", summary.requests, failed, e.connect,
        e.read, e.write, e.status, e.timeout, latency:percentile(50) / 1000,
        latency:percentile(99) / 1000))
    if failed > 0 or summary.requests == 0 then
        os.exit(1)
    end
end
