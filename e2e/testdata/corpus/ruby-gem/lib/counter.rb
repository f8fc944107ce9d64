module Counter
  def self.count(text) = text.chars.tally.sort.map { |c, n| "#{c}=#{n}" }.join(' ')
end
