Gem::Specification.new do |s|
  s.name = 'counter'
  s.version = '1.0'
  s.summary = 'Counts letters.'
  s.authors = ['nobody']
  s.licenses = ['MIT']
  s.homepage = 'https://example.org/counter'
  s.required_ruby_version = '>= 3'
  s.files = ['lib/counter.rb']
  s.executables = ['counter']
end
